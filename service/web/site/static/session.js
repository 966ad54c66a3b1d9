// Signing in: the key goes to the service once, a cookie that scripts cannot read stands for it after that.

import { ask, send } from "./api.js";
import { byId, show } from "./dom.js";

const RANK = { download: 1, full: 2, admin: 3 };

export class Session {
  state = { role: null, key_required: false, admin_enabled: false, links_enabled: false };

  /** `changed` is called whenever what the visitor may do is known anew, `signedIn` after a key was taken. */
  constructor(changed, signedIn) {
    this.changed = changed;
    this.signedIn = signedIn;
    const dialog = byId("sign-in-dialog");
    byId("sign-in").addEventListener("click", () => this.open());
    byId("sign-in-cancel").addEventListener("click", () => dialog.close());
    byId("sign-out").addEventListener("click", () => this.#signOut());
    byId("sign-in-form").addEventListener("submit", (event) => { event.preventDefault(); this.#signIn(); });
  }

  may(role) {
    return (RANK[this.state.role] ?? 0) >= RANK[role];
  }

  /** Whether a key could help: there is one for downloads, or one for the operator. */
  get possible() {
    return this.state.key_required || this.state.admin_enabled;
  }

  open() {
    if (byId("sign-in-dialog").open) return;
    byId("sign-in-error").textContent = "";
    byId("key").value = "";
    byId("sign-in-dialog").showModal();
  }

  async refresh() {
    this.#take(await ask("/session"));
  }

  async #signIn() {
    try {
      this.#take({ ...this.state, ...(await send("/session", { key: byId("key").value })) });
      byId("sign-in-dialog").close();
      this.signedIn();
    } catch (problem) {
      byId("sign-in-error").textContent = problem.document ? `${problem.document.title}. ${problem.document.detail ?? ""}` : String(problem);
    } finally {
      byId("key").value = "";
    }
  }

  async #signOut() {
    await ask("/session", { method: "DELETE" });
    await this.refresh();
  }

  #take(state) {
    this.state = state;
    const signedIn = state.signed_in;
    show(byId("sign-in"), !signedIn && !this.may("admin") && this.possible);
    show(byId("sign-out"), signedIn);
    this.changed();
  }
}
