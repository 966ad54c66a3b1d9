// One download: the browser fetches the archive by itself, and this follows the archive's events meanwhile.

import { ask } from "./api.js";
import { byId, bytes, count, duration, make, plural, reveal, show, uuid } from "./dom.js";
import { address } from "./options.js";
import { notice } from "./problems.js";

// Below what proxies take as a request line; more ids go into a form's body.
const IDS_IN_ADDRESS = 100;
// The speed is that of the last seconds.
const SPEED_SECONDS = 6;

const ENDINGS = {
  complete: (one) => `Done: ${plural(one.downloaded, "image")} in the ZIP, each one checked`,
  partial: (one) => `Done, but ${plural(one.failed, "image")} of ${count(one.total)} ${one.failed === 1 ? "is" : "are"} missing`,
  none: () => "Nothing could be downloaded",
  rejected: () => "The download was refused",
  aborted: () => "The download was broken off",
  client_gone: () => "Your browser ended the download",
};

// Their words leave nothing to add.
const SAID_ALREADY = ["not_ready", "expired"];
const TONES = { complete: "good", partial: "warn" };
const TITLE = document.title;

export class Download {
  #source = null;
  #images = new Map();
  #marks = [];
  #last = null;
  #begun = null;
  running = false;
  order = null; // what was asked for: of this order ...
  only = []; // ... these images, all if there are none

  /**
   * `reasons` has the words for each. `onImage` is told what becomes of each image, `onEnd` that nothing more comes,
   * `onLost` that it cannot be followed.
   */
  constructor(reasons, onImage, onEnd, onLost) {
    this.reasons = reasons;
    this.onImage = onImage;
    this.onEnd = onEnd;
    this.onLost = onLost;
  }

  get missing() {
    // One that was never asked for and not found was taken out of the order: it would be refused.
    const gone = (one) => one.reason === "not_found" && one.attempts === 0;
    return [...this.#images.values()].filter((one) => one.state === "failed" && !gone(one)).map((one) => one.image_id);
  }

  /** Begin to download an order: `only` these images of it, all if there are none. */
  start(order, query, only) {
    this.#source?.close();
    this.#images.clear();
    this.#marks = [];
    this.#last = this.#begun = null;
    this.running = true;
    Object.assign(this, { order, only });
    const id = uuid();
    this.#watch(id);
    const asked = new URLSearchParams(query);
    asked.set("archive_id", id);
    if (only.length > IDS_IN_ADDRESS) {
      this.#post(address(order.order_id, asked), only);
    } else {
      for (const one of only) asked.append("only", one);
      const link = make("a", { href: address(order.order_id, asked), download: "" });
      document.body.append(link);
      link.click();
      link.remove();
    }
    byId("progress-title").textContent = "Downloading…";
    byId("progress-text").textContent = "Waiting for the first image. Your browser saves the ZIP; this page shows how it goes.";
    for (const part of ["refusal", "failure-list"]) byId(part).replaceChildren();
    for (const part of ["failures", "missing", "again"]) show(byId(part), false);
    byId("bar").removeAttribute("value");
    byId("bar").dataset.tone = "";
    show(byId("bar"));
    show(byId("progress"));
    byId("progress-title").focus({ preventScroll: true });
    reveal(byId("progress"), "start");
  }

  /** Send the ids as a form, from a frame: if there is nothing to save, the answer must not take the page's place. */
  #post(action, only) {
    const fields = only.map((one) => make("input", { type: "hidden", name: "only", value: one }));
    const form = make("form", { method: "post", action, target: "saving", hidden: true }, ...fields);
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
      if (source.readyState === EventSource.CLOSED && source === this.#source) this.#lost(source, id);
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
    this.running = false;
    byId("progress-title").textContent = "Your browser downloads the ZIP";
    byId("progress-text").textContent = "Its progress cannot be shown here: this part of the service does not know it.";
    show(byId("bar"), false);
    document.title = TITLE;
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
    document.title = `${Math.floor((100 * (downloaded + failed)) / total)} % · ${TITLE}`; // for who looks elsewhere meanwhile
    byId("progress-text").textContent = [
      `${count(downloaded)} of ${plural(total, "image")}`,
      failed ? `${count(failed)} missing` : "",
      bytes(sent),
      speed ? `${bytes(Math.round(speed))}/s` : "",
      this.#last.credits_spent ? `${plural(this.#last.credits_spent, "credit")} spent` : "",
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

  #end(one) {
    this.running = false;
    const { state, total, downloaded, failed } = one;
    Object.assign(byId("bar"), { max: total || 1, value: downloaded + failed });
    byId("bar").dataset.tone = TONES[state] ?? "bad";
    show(byId("bar"), downloaded > 0);
    const title = (ENDINGS[state] ?? (() => state))(one);
    document.title = `${title} · ${TITLE}`;
    byId("progress-title").textContent = title;
    byId("progress-said").textContent = title;
    if (!total) byId("progress-text").textContent = "";
    if (one.problem) byId("refusal").append(notice(one.problem));
    const missing = [...this.#images.values()].filter((image) => image.state === "failed");
    byId("failure-list").append(...missing.map((image) => this.#failure(image)));
    show(byId("failures"), missing.length > 0);
    show(byId("missing"), state === "partial" && this.missing.length > 0);
    show(byId("again"), state !== "partial" && state !== "complete");
    this.onEnd();
  }

  /** Name a missing image: what happened, whether asking again helps, and what exactly was found. */
  #failure(image) {
    const { words, again } = this.reasons[image.reason] ?? { words: image.reason, again: "" };
    return make("li", { data: { reason: image.reason } },
      make("strong", {}, image.name || image.image_id), ` – ${words} ${again}`,
      image.detail && !SAID_ALREADY.includes(image.reason) ? make("span", { className: "hint" }, image.detail) : null);
  }
}
