// How the photos of a new order are to be enhanced: what Autoenhance offers, as a form.

import { make } from "./dom.js";

const YES_OR_NO = { true: "Yes", false: "No" };

// Each field as the service takes it: its name for people, and what can be chosen.
export const FIELDS = {
  enhance_type: ["Style", { property: "Property", property_usa: "Property, USA", warm: "Warm", neutral: "Neutral", modern: "Modern" }],
  sky_replacement: ["Replace the sky", YES_OR_NO],
  cloud_type: ["Clouds of the new sky", { CLEAR: "No clouds", LOW_CLOUD: "Low clouds", HIGH_CLOUD: "High clouds" }],
  window_pull_type: ["Window pull", { NONE: "None", ONLY_WINDOWS: "Windows only", WINDOWS_WITH_SKIES: "Windows with skies" }],
  vertical_correction: ["Straighten verticals", YES_OR_NO],
  lens_correction: ["Correct the lens", YES_OR_NO],
  upscale: ["Upscale", YES_OR_NO],
  privacy: ["Protect privacy", YES_OR_NO],
};

/** Fill an element with a choice for each field; the first of each leaves it to Autoenhance. */
export function addChoices(element) {
  for (const [name, [title, choices]] of Object.entries(FIELDS)) {
    const options = Object.entries(choices).map(([value, words]) => make("option", { value }, words));
    const select = make("select", { id: `photo-${name}`, name }, make("option", { value: "" }, "Autoenhance decides"), ...options);
    element.append(make("div", {}, make("label", { htmlFor: select.id }, title), select));
  }
}

/** Return what was chosen in an element, as pairs of field and value. */
export const chosen = (element) =>
  [...element.querySelectorAll("select")].filter((one) => one.value).map((one) => [one.name, one.value]);
