// The page: joins the order, the choices, the download, the upload and the session. Start reading here.

import { ask, send } from "./api.js";
import { byId, copy, count, duration, make, plural, reveal, show } from "./dom.js";
import { Download } from "./download.js";
import { canWait, command, parameters, price, spendsCredits } from "./options.js";
import { OrderView } from "./order.js";
import { notice } from "./problems.js";
import { Session } from "./session.js";
import { Upload } from "./upload.js";

// Without these nothing works; whoever reads that the service does not answer can only come again.
const facts = await ask("/api/page").catch((problem) => { say(notice(problem.document)); throw problem; });
const session = new Session(sessionChanged, signedIn);
const view = new OrderView(facts.reasons, orderChanged);
const download = new Download(
  facts.reasons,
  (image) => view.progress(image),
  choicesChanged,
  () => attempt(() => ask(`/orders/${download.order.order_id}`)), // it may be that the visitor must sign in again
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
    hideOrder();
    field.focus();
    return;
  }
  history.replaceState(null, "", `?${new URLSearchParams({ order: id })}`);
  byId("order-title").focus({ preventScroll: true });
  reveal(byId("order"), "start");
}

/** What is shown belongs to the id in the field, and to who may see it. */
function hideOrder() {
  view.forget();
  show(byId("choices"), false);
}

async function created(id) {
  prefill(id);
  await find(id);
}

/** Put an order's id into the field; where it is the demo order's, say so. */
function prefill(id) {
  byId("order-id").value = id;
  if (!facts.demo_order_id) return;
  const demo = id === facts.demo_order_id ? " The demo order is filled in." : "";
  byId("order-hint").textContent = `This is the sandbox: made-up orders, no real credits.${demo}`;
}

function orderChanged() {
  const another = download.order?.order_id !== view.order.order_id;
  if (another && !download.running) show(byId("progress"), false);
  show(byId("choices"));
  show(byId("wait-row"), canWait(view.order, facts));
  byId("wait-hint").textContent = `They join the ZIP as they become ready, for up to ${duration(facts.wait_max_seconds)}.`;
  choicesChanged();
}

function sessionChanged() {
  upload.allow(session);
  if (session.state.key_required && !session.state.role) hideOrder();
  choicesChanged();
}

/** Go on with what the key was needed for. */
async function signedIn() {
  const id = byId("order-id").value.trim();
  if (id) await find(id);
  else say();
}

/** Keep everything true that depends on the form, the order and the session. */
function choicesChanged() {
  const full = byId("full");
  full.disabled = !session.may("full");
  if (full.disabled && full.checked) byId("options").elements.preview.value = "true";
  if (!view.order) return;
  const { order } = view;
  const query = parameters(order, facts);
  byId("full-hint").textContent = fullHint(order, full.disabled);
  const [possible, words] = prospect(order, query);
  byId("download").disabled = !possible || download.running;
  byId("download-hint").textContent = words;
  byId("curl").textContent = command(order.order_id, bounded(query, price(order, query)), session.state.key_required);
  show(byId("share"), session.state.links_enabled);
  show(byId("link-row"), false);
}

/** Whether a download would bring something, and what, in words. */
function prospect(order, query) {
  const { total, ready, not_ready: coming } = order.counts;
  const waits = query.has("wait");
  if (waits && order.busy && !total) {
    return spendsCredits(query)
      ? [false, "What it costs can be told when the images are listed. Previews can be had before."]
      : [true, `Begins when the first image is ready, as ${order.archive_name}`];
  }
  if (waits && coming) {
    const words = ready ? `${plural(ready, "image")} now, ${count(coming)} more` : plural(coming, "image");
    return [true, `${words} when ready, as ${order.archive_name}`];
  }
  return ready ? [true, `${plural(ready, "image")} as ${order.archive_name}`] : [false, "Nothing is ready to be downloaded."];
}

function fullHint(order, disabled) {
  if (disabled) return session.possible ? "Spends credits: sign in with a key that may." : "Spends credits: the operator allows it to nobody.";
  if (!order.counts.total) return "Spends one credit for each image.";
  const most = order.credits.full_quality;
  return most ? `Spends up to ${plural(most, "credit")} for this order. You are asked first.` : "Nothing in this order costs a credit any more.";
}

/** What was agreed to, or shown, binds the service. */
function bounded(query, credits) {
  const bound = new URLSearchParams(query);
  if (spendsCredits(query)) bound.set("max_credits", credits);
  return bound;
}

/** Download an order: `only` these images of it, all if there are none. */
async function begin(order, only = []) {
  const query = parameters(order, facts);
  const credits = price(order, query, only);
  if (credits && !(await agreed(credits))) return;
  say();
  download.start(order, bounded(query, credits), only);
  choicesChanged();
}

/** Download again what the last download was about, by what is known of its order now. */
const beginAgain = (only) => begin(view.order?.order_id === download.order.order_id ? view.order : download.order, only);

function agreed(credits) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = `Spend up to ${plural(credits, "credit")}?`;
  byId("confirm-text").textContent = "Full quality costs one credit for each image that is not paid yet. An image is never bought twice.";
  byId("confirm-yes").textContent = `Spend ${count(credits)}`;
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
// A field that the browser complains about must be in view, or the button seems dead.
byId("options").addEventListener("invalid", (event) => { const folded = event.target.closest("details"); if (folded) folded.open = true; }, true);
byId("options").addEventListener("submit", (event) => { event.preventDefault(); begin(view.order); });
byId("missing").addEventListener("click", () => beginAgain(download.missing));
byId("again").addEventListener("click", () => beginAgain(download.only));
byId("copy-curl").addEventListener("click", (event) => copy(byId("curl").textContent, event.currentTarget));
byId("copy-link").addEventListener("click", (event) => copy(byId("link").textContent, event.currentTarget));
byId("make-link").addEventListener("click", makeLink);

const asked = new URLSearchParams(location.search).get("order");
byId("version").textContent = `Batch image downloader ${facts.version}`;
show(byId("sandbox-badge"), Boolean(facts.demo_order_id));
prefill(asked ?? facts.demo_order_id ?? "");
await attempt(() => session.refresh());
if (!facts.api_key_configured) {
  say(make("div", { className: "notice", role: "status" }, make("strong", {}, "The service has no API key"),
    "Orders cannot be read until its operator sets AUTOENHANCE_API_KEY."));
}
if (session.state.key_required && !session.state.role) session.open();
else if (asked) await find(asked);
document.documentElement.dataset.ready = "true";
