// The form's options as query parameters of the download, and as a command for the terminal.

import { byId } from "./dom.js";

// The service's defaults are omitted, for shorter URLs.
const DEFAULTS = { preview: "true", format: "jpeg" };

/** Return the query parameters of the download, in the form's order. */
export function parameters(order, config) {
  const chosen = [...new FormData(byId("options"))].filter(([name, value]) => value !== "" && DEFAULTS[name] !== value);
  const query = new URLSearchParams(chosen);
  if (canWait(order, config) && byId("wait").checked) query.set("wait", config.wait_max_seconds);
  return query;
}

/** Return whether further images may become ready. */
export const canWait = (order, config) => Boolean(config.wait_max_seconds && (order.busy || order.counts.not_ready));

export const spendsCredits = (query) => query.get("preview") === "false" && query.get("dev_mode") !== "true";

/** Return the largest number of credits the download can spend: one for each unpaid image in it. */
export function price(order, query, only = []) {
  if (!spendsCredits(query)) return 0;
  const coming = query.has("wait") ? ["ready", "not_ready"] : ["ready"];
  return order.images.filter((one) =>
    !one.paid && coming.includes(one.readiness) && (!only.length || only.includes(one.image_id))).length;
}

export function address(orderId, query) {
  const text = query.toString();
  return `/orders/${orderId}/images${text ? `?${text}` : ""}`;
}

export function command(orderId, query, keyRequired) {
  const key = keyRequired ? ' --header "X-API-Key: $KEY"' : "";
  return `curl --fail-with-body${key} --output images.zip "${location.origin}${address(orderId, query)}"`;
}
