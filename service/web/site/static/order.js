// One order on the page: its images with pictures and states, kept up to date while it is being processed.

import { ask } from "./api.js";
import { byId, count, make, plural, show } from "./dom.js";

const FIRST_PAUSE = 3000;
const LONGEST_PAUSE = 15000;
// More pictures than this only on request: each asks the API once.
const SHOWN_AT_FIRST = 48;

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
  #live = new Map(); // what a download has done with each image, shown or not
  #timer = null;
  #limit = SHOWN_AT_FIRST;
  #asked = null; // the newest order that was asked for: answers about others come too late
  order = null;

  /** `reasons` has the words for each, `changed` is called with the order whenever it has been read. */
  constructor(reasons, changed) {
    this.reasons = reasons;
    this.changed = changed;
    byId("gallery-more").addEventListener("click", () => { this.#limit = Infinity; this.#render(); });
  }

  async load(id) {
    clearTimeout(this.#timer);
    const asked = this.#asked = {};
    const order = await ask(`/orders/${encodeURIComponent(id)}`);
    if (this.#asked !== asked) return this.order;
    if (order.order_id !== this.order?.order_id) {
      this.#items.clear();
      this.#live.clear();
      byId("gallery").replaceChildren();
      this.#limit = SHOWN_AT_FIRST;
    }
    this.#take(order);
    this.#watch(asked, FIRST_PAUSE);
    return order;
  }

  /** Show no order any more. */
  forget() {
    clearTimeout(this.#timer);
    this.#asked = this.order = null;
    show(byId("order"), false);
  }

  /** Show what a running download does with an image. */
  progress(image) {
    this.#live.set(image.image_id, image);
    const item = this.#items.get(image.image_id);
    if (item) this.#renderProgress(item, image);
  }

  #take(order) {
    this.order = order;
    this.#render();
    this.changed(order);
  }

  #watch(asked, pause) {
    if (!this.order.busy && !this.order.counts.not_ready) return;
    this.#timer = setTimeout(async () => {
      let next = LONGEST_PAUSE;
      try {
        const order = await ask(`/orders/${this.order.order_id}`);
        if (this.#asked !== asked) return;
        const news = JSON.stringify(order) !== JSON.stringify(this.order);
        if (news) this.#take(order);
        next = news ? FIRST_PAUSE : Math.min(LONGEST_PAUSE, pause * 1.4);
      } catch {
        if (this.#asked !== asked) return;
      }
      this.#watch(asked, next);
    }, pause);
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

  #renderProgress(item, image) {
    item.row.dataset.writing = String(image.state === "writing");
    label(item.state, STATE[image.state] ?? [image.state, ""]);
    this.#explain(item, image);
  }

  /** Say why an image cannot be had, where everybody can read it. */
  #explain(item, image) {
    const waiting = image.reason === "not_ready"; // which its state says already
    item.why.textContent = (waiting ? "" : this.reasons[image.reason]?.words) ?? image.detail ?? "";
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
      this.#renderProgress(item, live);
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
