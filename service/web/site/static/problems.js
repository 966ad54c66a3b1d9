// Advice for the visitor, by problem slug (the last part of `type`). Title and detail come from the service.

import { make } from "./dom.js";

export const ADVICE = {
  "invalid-order-id": "Copy the whole id from the address in the web app.",
  "bad-request": "Reload the page and try again.",
  "invalid-parameter": "Correct the value, or leave the field empty.",
  "unknown-parameter": "Reload the page: it is older than the service.",
  "repeated-parameter": "Reload the page and try again.",
  "image-not-in-order": "The order has changed. Show it again.",
  "invalid-body": "Reload the page and try again.",
  "invalid-archive-id": "Reload the page and try again.",
  "authentication-required": "Sign in with a key of this service.",
  "invalid-credentials": "Check the key for missing characters.",
  "admin-required": "Sign in with the operator’s token.",
  "webhook-unauthorized": "This concerns the operator only.",
  "credits-exceeded": "The order has changed and would cost more than you agreed to. Show it again; nothing was bought.",
  "admin-not-configured": "The operator of this service has not set an admin token, so this is off.",
  "full-quality-not-allowed": "Download previews, or sign in with a key that may spend credits.",
  "link-invalid": "Use the link exactly as it was given to you.",
  "link-expired": "Request a new link from the person who sent it.",
  "too-many-auth-failures": "Wait a minute before the next attempt.",
  "webhooks-not-configured": "This concerns the operator only.",
  "not-found": "Reload the page: it may be older than the service.",
  "method-not-allowed": "Reload the page: it may be older than the service.",
  "order-not-found": "Check the id, and that the order belongs to this service’s account.",
  "archive-not-found": "The progress is not known here; the download itself goes on.",
  "order-empty": "Upload photos to the order first.",
  "request-body-timeout": "The connection was too slow or broke. Upload the rest again.",
  "order-not-ready": "Tick “Wait for images”, or try again in a few minutes.",
  "unsupported-media-type": "Reload the page and try again.",
  "archive-id-in-use": "Press Download once more.",
  "archive-not-resumable": "Start the download again from the beginning.",
  "too-many-images": "The order is larger than this service allows in one archive.",
  "no-files-uploaded": "Choose photos as cameras and phones make them.",
  "no-images-available": "The list below has the reason for each image.",
  "thumbnail-unavailable": "",
  "upstream-failed": "Autoenhance has a problem. Try again in a few minutes.",
  "upstream-invalid-response": "Autoenhance has a problem. Try again in a few minutes.",
  "upstream-unauthorized": "The operator must correct the service’s API key.",
  "upstream-timeout": "Autoenhance is slow at the moment. Try again in a few minutes.",
  "first-byte-timeout": "Autoenhance is slow at the moment. Try again in a few minutes.",
  "sentry-unauthorized": "This concerns the operator only.",
  "sentry-unavailable": "This concerns the operator only.",
  "sentry-invalid-response": "This concerns the operator only.",
  "api-key-not-configured": "The operator must give the service an API key.",
  "links-not-configured": "The operator must set a key for signing links.",
  "sentry-not-configured": "This concerns the operator only.",
  "at-capacity": "Many downloads are running. Try again in a few minutes.",
  draining: "The service is being restarted. Try again in a few minutes.",
  "internal-error": "Report the request id in the details to the operator.",
};

export const slug = (problem) => (problem.type ?? "").split("/").pop();

/** Render a problem as a notice: title, detail and advice. */
export function notice(problem) {
  const advice = ADVICE[slug(problem)];
  return make("div", { className: "notice bad", role: "alert", data: { problem: slug(problem) } },
    make("strong", {}, problem.title ?? "Something went wrong"),
    [problem.detail, advice].filter(Boolean).join(" "));
}
