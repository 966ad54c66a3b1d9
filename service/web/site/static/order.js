// One order on the page: its images with thumbnails and states, polled while it is being processed.

import { request } from "./api.js";
import { byId, count, make, plural, show } from "./dom.js";

const MIN_POLL_INTERVAL = 3000; // milliseconds
const MAX_POLL_INTERVAL = 15000;
// Further thumbnails are loaded only on request: each causes requests to the API.
const INITIAL_IMAGES = 48;

const STATUS = {
  ready: ["Ready", "good"],
  partial: ["Partly ready", "warn"],
  busy: ["Being processed", "warn"],
  failed: ["Nothing ready", "bad"],
  empty: ["No images", "warn"],
};
const READINESS = {
  ready: ["Ready", "good"],
  not_ready: ["Being processed", "warn"],
  failed: ["Failed", "bad"],
  expired: ["Expired", "bad"],
};
const STATE = {
  waiting: ["Waiting", ""],
  writing: ["Downloading", ""],
  downloaded: ["Downloaded", "good"],
  failed: ["Missing", "bad"],
};

function label(element, [text, tone]) {
  element.textContent = text;
  element.dataset.tone = tone;
}

export class OrderView {
  #items = new Map();
  #live = new Map(); // the state of each image in the running download, also of images not shown
  #timer = null;
  #limit = INITIAL_IMAGES;
  #latestLoad = null; // identifies the latest load: responses to earlier ones are outdated
  order = null;

  /** `reasons` has a text for each reason; `changed` is called with each new state of the order. */
  constructor(reasons, changed) {
    this.reasons = reasons;
    this.changed = changed;
    byId("gallery-more").addEventListener("click", () => { this.#limit = Infinity; this.#render(); });
  }

  async load(id) {
    clearTimeout(this.#timer);
    const load = this.#latestLoad = {};
    const order = await request(`/orders/${encodeURIComponent(id)}`);
    if (this.#latestLoad !== load) return this.order;
    if (order.order_id !== this.order?.order_id) {
      this.#items.clear();
      this.#live.clear();
      byId("gallery").replaceChildren();
      this.#limit = INITIAL_IMAGES;
    }
    this.#update(order);
    this.#poll(load, MIN_POLL_INTERVAL);
    return order;
  }

  /** Hide the order and stop polling. */
  clear() {
    clearTimeout(this.#timer);
    this.#latestLoad = this.order = null;
    show(byId("order"), false);
  }

  /** Show the state of an image in the running download. */
  showProgress(image) {
    this.#live.set(image.image_id, image);
    const item = this.#items.get(image.image_id);
    if (item) this.#renderState(item, image);
  }

  #update(order) {
    this.order = order;
    this.#render();
    this.changed(order);
  }

  #poll(load, interval) {
    if (!this.order.busy && !this.order.counts.not_ready) return;
    this.#timer = setTimeout(async () => {
      let next = MAX_POLL_INTERVAL;
      try {
        const order = await request(`/orders/${this.order.order_id}`);
        if (this.#latestLoad !== load) return;
        const changed = JSON.stringify(order) !== JSON.stringify(this.order);
        if (changed) this.#update(order);
        next = changed ? MIN_POLL_INTERVAL : Math.min(MAX_POLL_INTERVAL, interval * 1.4);
      } catch {
        if (this.#latestLoad !== load) return;
      }
      this.#poll(load, next);
    }, interval);
  }

  #render() {
    const { order } = this;
    byId("order-title").textContent = order.name || "Order without a name";
    label(byId("order-status"), STATUS[order.status] ?? [order.status, ""]);
    const { total, ready, not_ready: busy } = order.counts;
    const rest = total - ready - busy;
    byId("order-summary").textContent = [
      total ? `${count(ready)} of ${plural(total, "image")} ready` : order.busy ? "The images are not listed yet" : "There are no images",
      busy ? `${count(busy)} being processed` : "",
      rest ? `${count(rest)} cannot be downloaded` : "",
      order.credits.paid ? `${count(order.credits.paid)} paid already` : "",
    ].filter(Boolean).join(" · ");
    for (const image of order.images.slice(0, this.#limit)) this.#renderImage(image);
    const hidden = Math.max(0, order.images.length - this.#limit);
    const more = byId("gallery-more");
    show(more, hidden > 0);
    more.textContent = `Show ${count(hidden)} more`;
    show(byId("order"));
  }

  #renderState(item, image) {
    item.row.dataset.writing = String(image.state === "writing");
    label(item.state, STATE[image.state] ?? [image.state, ""]);
    this.#explain(item, image);
  }

  /** Show why an image is not available, as visible text. */
  #explain(item, image) {
    const waiting = image.reason === "not_ready"; // the state shows that
    item.why.textContent = (waiting ? "" : this.reasons[image.reason]?.text) ?? image.detail ?? "";
    item.why.title = image.detail ?? "";
  }

  #renderImage(image) {
    let item = this.#items.get(image.image_id);
    if (!item) {
      const state = make("span", { className: "state" });
      const picture = make("div", { className: "picture" });
      const name = make("span", { className: "name", title: image.entry }, image.entry);
      const why = make("span", { className: "hint why" });
      const row = make("li", { data: { image: image.image_id } }, picture, name, state, why);
      byId("gallery").append(row);
      item = { row, picture, state, why, pictured: false };
      this.#items.set(image.image_id, item);
    }
    const live = this.#live.get(image.image_id);
    if (live) {
      this.#renderState(item, live);
    } else {
      label(item.state, READINESS[image.readiness] ?? [image.readiness, ""]);
      this.#explain(item, image);
    }
    if (image.readiness === "ready" && !item.pictured) {
      item.pictured = true;
      const img = make("img", { loading: "lazy", decoding: "async", alt: "", src: `/images/${encodeURIComponent(image.image_id)}/preview` });
      img.addEventListener("error", () => item.picture.replaceChildren("No preview"));
      item.picture.replaceChildren(img);
    } else if (!item.pictured) {
      item.picture.textContent = image.readiness === "not_ready" ? "Not ready yet" : "No picture";
    }
  }
}
