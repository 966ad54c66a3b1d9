// Entry point of the page: connects order, options, download, upload and session. Start reading here.

import { request, send } from "./api.js";
import { byId, copy, count, duration, make, plural, reveal, show } from "./dom.js";
import { Download } from "./download.js";
import { canWait, command, parameters, price, spendsCredits } from "./options.js";
import { OrderView } from "./order.js";
import { notice } from "./problems.js";
import { Session } from "./session.js";
import { Upload } from "./upload.js";

// Nothing works without these: if the request fails, the page shows only that.
const config = await request("/api/page").catch((problem) => { say(notice(problem.document)); throw problem; });
const session = new Session(sessionChanged, signedIn);
const view = new OrderView(config.reasons, orderChanged);
const download = new Download(
  config.reasons,
  (image) => view.showProgress(image),
  choicesChanged,
  () => attempt(() => request(`/orders/${download.order.order_id}`)), // the session may have expired
);
const upload = new Upload(config, created, signInIfNeeded);

function say(...notices) {
  byId("notices").replaceChildren(...notices);
  if (notices.length) reveal(byId("notices"));
}

/** Run an action; show a problem as a notice, and the sign-in dialog where a key would help. */
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

/** Hide the order: it belongs to another id, or may be seen only with a key. */
function hideOrder() {
  view.clear();
  show(byId("choices"), false);
}

async function created(id) {
  prefill(id);
  await find(id);
}

/** Put an order's id into the field; mark the demo order. */
function prefill(id) {
  byId("order-id").value = id;
  if (!config.demo_order_id) return;
  const demo = id === config.demo_order_id ? " The demo order is filled in." : "";
  byId("order-hint").textContent = `This is the sandbox: made-up orders, no real credits.${demo}`;
}

function orderChanged() {
  const isOther = download.order?.order_id !== view.order.order_id;
  if (isOther && !download.running) show(byId("progress"), false);
  show(byId("choices"));
  show(byId("wait-row"), canWait(view.order, config));
  byId("wait-hint").textContent = `They join the ZIP as they become ready, for up to ${duration(config.wait_max_seconds)}.`;
  choicesChanged();
}

function sessionChanged() {
  upload.allow(session);
  if (session.state.key_required && !session.state.role) hideOrder();
  choicesChanged();
}

/** Continue with the action that required a key. */
async function signedIn() {
  const id = byId("order-id").value.trim();
  if (id) await find(id);
  else say();
}

/** Update everything that depends on the form, the order and the session. */
function choicesChanged() {
  const full = byId("full");
  full.disabled = !session.may("full");
  if (full.disabled && full.checked) byId("options").elements.preview.value = "true";
  if (!view.order) return;
  const { order } = view;
  const query = parameters(order, config);
  byId("full-hint").textContent = fullHint(order, full.disabled);
  const [possible, hint] = summary(order, query);
  byId("download").disabled = !possible || download.running;
  byId("download-hint").textContent = hint;
  byId("curl").textContent = command(order.order_id, withCreditLimit(query, price(order, query)), session.state.key_required);
  show(byId("share"), session.state.links_enabled);
  show(byId("link-row"), false);
}

/** Return whether a download would contain anything, and a text that says what. */
function summary(order, query) {
  const { total, ready, not_ready: coming } = order.counts;
  const waits = query.has("wait");
  if (waits && order.busy && !total) {
    return spendsCredits(query)
      ? [false, "The cost is known when the images are listed. Previews can be downloaded before."]
      : [true, `Begins when the first image is ready, as ${order.archive_name}`];
  }
  if (waits && coming) {
    const text = ready ? `${plural(ready, "image")} now, ${count(coming)} more` : plural(coming, "image");
    return [true, `${text} when ready, as ${order.archive_name}`];
  }
  return ready ? [true, `${plural(ready, "image")} as ${order.archive_name}`] : [false, "Nothing is ready to be downloaded."];
}

function fullHint(order, disabled) {
  if (disabled) return session.canSignIn ? "Spends credits: sign in with a key that may." : "Spends credits: the operator does not allow it.";
  if (!order.counts.total) return "Spends one credit for each image.";
  const most = order.credits.full_quality;
  return most ? `Spends up to ${plural(most, "credit")} for this order. You confirm the number first.` : "Nothing in this order costs a credit any more.";
}

/** Limit the download to the credits that were confirmed or shown. */
function withCreditLimit(query, credits) {
  const limited = new URLSearchParams(query);
  if (spendsCredits(query)) limited.set("max_credits", credits);
  return limited;
}

/** Download an order, or `only` the listed images of it. */
async function begin(order, only = []) {
  const query = parameters(order, config);
  const credits = price(order, query, only);
  if (credits && !(await confirmCredits(credits))) return;
  say();
  download.start(order, withCreditLimit(query, credits), only);
  choicesChanged();
}

/** Repeat the last download, or part of it, with the current state of its order. */
const beginAgain = (only) => begin(view.order?.order_id === download.order.order_id ? view.order : download.order, only);

function confirmCredits(credits) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = `Spend up to ${plural(credits, "credit")}?`;
  byId("confirm-text").textContent = "Full quality costs one credit for each image that is not paid yet. An image is never bought twice.";
  byId("confirm-yes").textContent = `Spend ${count(credits)}`;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

async function makeLink() {
  const query = parameters(view.order, config);
  const link = await attempt(() => send(`/orders/${view.order.order_id}/links`, { parameters: Object.fromEntries(query) }));
  if (!link) return;
  byId("link").textContent = link.url;
  show(byId("link-row"));
}

byId("find").addEventListener("submit", (event) => { event.preventDefault(); find(byId("order-id").value.trim()); });
byId("options").addEventListener("input", choicesChanged);
// An invalid field must be visible: otherwise the button seems to do nothing.
byId("options").addEventListener("invalid", (event) => { const folded = event.target.closest("details"); if (folded) folded.open = true; }, true);
byId("options").addEventListener("submit", (event) => { event.preventDefault(); begin(view.order); });
byId("missing").addEventListener("click", () => beginAgain(download.missing));
byId("again").addEventListener("click", () => beginAgain(download.only));
byId("copy-curl").addEventListener("click", (event) => copy(byId("curl").textContent, event.currentTarget));
byId("copy-link").addEventListener("click", (event) => copy(byId("link").textContent, event.currentTarget));
byId("make-link").addEventListener("click", makeLink);

const requestedOrder = new URLSearchParams(location.search).get("order");
byId("version").textContent = `Batch image downloader ${config.version}`;
show(byId("sandbox-badge"), Boolean(config.demo_order_id));
prefill(requestedOrder ?? config.demo_order_id ?? "");
await attempt(() => session.refresh());
if (!config.api_key_configured) {
  say(make("div", { className: "notice", role: "status" }, make("strong", {}, "The service has no API key"),
    "Orders cannot be read until its operator sets AUTOENHANCE_API_KEY."));
}
if (session.state.key_required && !session.state.role) session.open();
else if (requestedOrder) await find(requestedOrder);
document.documentElement.dataset.ready = "true";
