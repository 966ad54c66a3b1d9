// One download: the browser fetches the archive by itself, and this follows the archive's events meanwhile.

import { ask } from "./api.js";
import { byId, bytes, duration, make, plural, reveal, show, uuid } from "./dom.js";
import { address } from "./options.js";
import { notice } from "./problems.js";

// Below what proxies take as a request line; more ids go into a form's body.
const IDS_IN_ADDRESS = 100;
// The speed is that of the last seconds.
const SPEED_SECONDS = 6;

const ENDINGS = {
  complete: (one) => `Done: ${plural(one.downloaded, "image")} in the ZIP, each one checked`,
  partial: (one) => `Done, but ${plural(one.failed, "image")} of ${one.total} could not be had`,
  none: () => "Nothing could be downloaded",
  rejected: () => "The download was refused",
  aborted: () => "The download was broken off",
  client_gone: () => "Your browser ended the download",
};

export class Download {
  #source = null;
  #images = new Map();
  #marks = [];
  #last = null;

  /** `onImage` is told what becomes of each image, `onEnd` that nothing more comes, `onLost` that it cannot be followed. */
  constructor(onImage, onEnd, onLost) {
    this.onImage = onImage;
    this.onEnd = onEnd;
    this.onLost = onLost;
  }

  get missing() {
    // One that was never asked for and not found was taken out of the order: it would be refused.
    const gone = (one) => one.reason === "not_found" && one.attempts === 0;
    return [...this.#images.values()].filter((one) => one.state === "failed" && !gone(one)).map((one) => one.image_id);
  }

  /** Begin: `only` are the images to take, all if there are none. */
  start(orderId, query, only = []) {
    this.#source?.close();
    this.#images.clear();
    this.#marks = [];
    this.#last = null;
    const id = uuid();
    this.#watch(id);
    const asked = new URLSearchParams(query);
    asked.set("archive_id", id);
    if (only.length > IDS_IN_ADDRESS) {
      this.#post(address(orderId, asked), only);
    } else {
      for (const one of only) asked.append("only", one);
      const link = make("a", { href: address(orderId, asked), download: "" });
      document.body.append(link);
      link.click();
      link.remove();
    }
    byId("progress-title").textContent = "Downloading…";
    byId("progress-text").textContent = "Waiting for the first image";
    for (const part of ["refusal", "failure-list"]) byId(part).replaceChildren();
    for (const part of ["failures", "missing", "again"]) show(byId(part), false);
    byId("bar").removeAttribute("value");
    show(byId("bar"));
    show(byId("progress"));
    byId("progress-title").focus({ preventScroll: true });
    reveal(byId("progress"), "start");
  }

  #post(action, only) {
    const fields = only.map((one) => make("input", { type: "hidden", name: "only", value: one }));
    const form = make("form", { method: "post", action, hidden: true }, ...fields);
    document.body.append(form);
    form.submit();
    form.remove();
  }

  #watch(id) {
    const source = new EventSource(`/archives/${id}/events`);
    this.#source = source;
    const on = (kind, take) => source.addEventListener(kind, (event) => take(JSON.parse(event.data)));
    on("snapshot", (one) => { for (const image of one.images) this.#take(image); this.#tell(one); });
    on("image", (image) => { this.#take(image); this.#tell(image); });
    on("archive", (one) => this.#tell(one));
    on("end", (one) => { source.close(); this.#tell(one); this.#end(one); });
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) this.#lost(source, id);
    });
  }

  /** There are no events: the download was refused for want of room, or it goes on where nobody can watch it. */
  async #lost(source, id) {
    const refused = await ask(`/archives/${id}`).then(() => null, (problem) => problem.document.refused);
    if (source !== this.#source) return;
    if (refused) {
      this.#end({ state: "rejected", total: 0, downloaded: 0, failed: 0, problem: refused });
      return;
    }
    byId("progress-title").textContent = "Your browser downloads the ZIP";
    byId("progress-text").textContent = "Its progress cannot be shown here: this part of the service does not know it.";
    show(byId("bar"), false);
    this.onEnd();
    this.onLost();
  }

  #take(image) {
    this.#images.set(image.image_id, image);
    this.onImage(image);
  }

  #tell(news) {
    if (news.total === undefined) return;
    this.#last = { ...this.#last, ...news };
    const { total, downloaded, failed, bytes: sent } = this.#last;
    const now = performance.now() / 1000;
    this.#marks.push([now, sent, downloaded + failed]);
    while (this.#marks.length > 2 && now - this.#marks[1][0] > SPEED_SECONDS) this.#marks.shift();
    const [since, before] = this.#marks[0];
    const speed = now - since > 0.5 ? (sent - before) / (now - since) : 0;
    if (!total) return;
    Object.assign(byId("bar"), { max: total, value: downloaded + failed });
    byId("progress-text").textContent = [
      `${downloaded} of ${plural(total, "image")}`,
      bytes(sent),
      speed ? `${bytes(Math.round(speed))}/s` : "",
      this.#left(now),
    ].filter(Boolean).join(" · ");
  }

  /** Return about how long it takes still, once enough is known for that. */
  #left(now) {
    const { total, downloaded, failed } = this.#last;
    const done = downloaded + failed;
    this.#begun ??= now;
    if (done < 2 || done === total || now - this.#begun < 3) return "";
    return `about ${duration(((now - this.#begun) / done) * (total - done))} left`;
  }

  #begun = null;

  #end(one) {
    this.#begun = null;
    const { state, total, downloaded, failed } = one;
    Object.assign(byId("bar"), { max: total || 1, value: downloaded + failed });
    const title = (ENDINGS[state] ?? (() => state))(one);
    byId("progress-title").textContent = title;
    byId("progress-said").textContent = title;
    if (!total) byId("progress-text").textContent = "";
    const list = byId("failure-list");
    if (one.problem) byId("refusal").append(notice(one.problem));
    for (const image of this.#images.values()) {
      if (image.state === "failed") {
        list.append(make("li", { data: { reason: image.reason } }, make("strong", {}, image.name || image.image_id), ` – ${image.detail || image.reason}`));
      }
    }
    show(byId("failures"), list.children.length > 0);
    show(byId("missing"), state === "partial" && this.missing.length > 0);
    show(byId("again"), state !== "partial" && state !== "complete");
    this.onEnd();
  }
}
