// The page: joins the order, the choices, the download, the upload and the session. Start reading here.

import { ask, send } from "./api.js";
import { byId, copy, make, plural, reveal, show } from "./dom.js";
import { Download } from "./download.js";
import { address, canWait, command, parameters, spendsCredits } from "./options.js";
import { OrderView } from "./order.js";
import { notice } from "./problems.js";
import { Session } from "./session.js";
import { Upload } from "./upload.js";

const facts = await ask("/api/page");
const session = new Session(sessionChanged);
const view = new OrderView(orderChanged);
const download = new Download(
  (image) => view.progress(image),
  () => { byId("download").disabled = false; },
  () => attempt(() => ask(`/orders/${view.order.order_id}`)), // it may be that the visitor must sign in again
);
const upload = new Upload(facts, created, signInIfNeeded);

function say(...notices) {
  byId("notices").replaceChildren(...notices);
  if (notices.length) reveal(byId("notices"));
}

/** Run what a visitor asked for; a refusal is told, and where a key would help, asked for. */
async function attempt(action) {
  say();
  try {
    return await action();
  } catch (problem) {
    if (!problem.document) throw problem;
    say(notice(problem.document));
    signInIfNeeded(problem.document);
    return null;
  }
}

function signInIfNeeded(problem) {
  if (problem.status === 401) session.open();
}

async function find(id) {
  const field = byId("order-id");
  const order = await attempt(() => view.load(id));
  field.setAttribute("aria-invalid", String(!order));
  if (!order) {
    field.focus();
    return;
  }
  history.replaceState(null, "", `?${new URLSearchParams({ order: id })}`);
  byId("order-title").focus({ preventScroll: true });
  reveal(byId("order"), "start");
}

async function created(id) {
  byId("order-id").value = id;
  await find(id);
}

function orderChanged() {
  show(byId("choices"));
  show(byId("wait-row"), canWait(view.order, facts));
  choicesChanged();
}

function sessionChanged() {
  upload.allow(session);
  choicesChanged();
}

/** Keep everything true that depends on the form, the order and the session. */
function choicesChanged() {
  const full = byId("full");
  full.disabled = !session.may("full");
  if (full.disabled && full.checked) byId("options").elements.preview.value = "true";
  if (!view.order) return;
  const { order } = view;
  const query = parameters(order, facts);
  byId("full-hint").textContent = full.disabled
    ? "Spends credits: sign in with a key that may."
    : order.credits.full_quality
      ? `Spends up to ${plural(order.credits.full_quality, "credit")} for this order.`
      : "Everything in this order is paid already.";
  const ready = order.counts.ready + (query.has("wait") ? order.counts.not_ready : 0);
  const possible = ready > 0 || (query.has("wait") && order.busy);
  byId("download").disabled = !possible;
  byId("download-hint").textContent = possible
    ? `${plural(ready, "image")} as ${order.archive_name}`
    : "Nothing is ready to be downloaded.";
  byId("curl").textContent = command(order.order_id, query, session.state.key_required);
  show(byId("share"), session.state.links_enabled);
  show(byId("link-row"), false);
}

async function begin(only = []) {
  const { order } = view;
  const query = parameters(order, facts);
  if (spendsCredits(query)) {
    const coming = query.has("wait") ? ["ready", "not_ready"] : ["ready"];
    const price = order.images.filter((one) =>
      !one.paid && coming.includes(one.readiness) && (!only.length || only.includes(one.image_id))).length;
    if (price && !(await agreed(price))) return;
    query.set("max_credits", price); // what was agreed to binds the service
  }
  say();
  byId("download").disabled = true;
  download.start(order.order_id, query, only);
}

function agreed(price) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = `Spend up to ${plural(price, "credit")}?`;
  byId("confirm-text").textContent = "Full quality costs one credit for each image that is not paid yet. An image is never bought twice.";
  byId("confirm-yes").textContent = `Spend ${price}`;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

async function makeLink() {
  const query = parameters(view.order, facts);
  const link = await attempt(() => send(`/orders/${view.order.order_id}/links`, { parameters: Object.fromEntries(query) }));
  if (!link) return;
  byId("link").textContent = link.url;
  show(byId("link-row"));
}

byId("find").addEventListener("submit", (event) => { event.preventDefault(); find(byId("order-id").value.trim()); });
byId("options").addEventListener("input", choicesChanged);
byId("wait").addEventListener("change", choicesChanged);
byId("options").addEventListener("submit", (event) => { event.preventDefault(); begin(); });
byId("missing").addEventListener("click", () => begin(download.missing));
byId("again").addEventListener("click", () => begin());
byId("copy-curl").addEventListener("click", (event) => copy(byId("curl").textContent, event.currentTarget));
byId("copy-link").addEventListener("click", (event) => copy(byId("link").textContent, event.currentTarget));
byId("make-link").addEventListener("click", makeLink);

byId("version").textContent = `Batch image downloader ${facts.version}`;
if (facts.demo_order_id) {
  show(byId("sandbox-badge"));
  byId("order-hint").textContent = "This is the sandbox: made-up orders, no real credits. A demo order is filled in.";
}
const asked = new URLSearchParams(location.search).get("order");
byId("order-id").value = asked ?? facts.demo_order_id ?? "";
await attempt(() => session.refresh());
if (!facts.api_key_configured) {
  say(make("div", { className: "notice", role: "status" }, make("strong", {}, "The service has no API key"),
    "Orders cannot be read until its operator sets AUTOENHANCE_API_KEY."));
}
if (session.state.key_required && !session.state.role) session.open();
else if (asked) await find(asked);
document.documentElement.dataset.ready = "true";
