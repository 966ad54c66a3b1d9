// Options for enhancing the photos of a new order, as a form.

import { make } from "./dom.js";

const YES_OR_NO = { true: "Yes", false: "No" };

// Form fields of the service: a label, and the values with their labels.
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

/** Add a select for each field; its first option leaves the value to Autoenhance. */
export function addOptions(element) {
  for (const [name, [title, choices]] of Object.entries(FIELDS)) {
    const options = Object.entries(choices).map(([value, label]) => make("option", { value }, label));
    const select = make("select", { id: `photo-${name}`, name }, make("option", { value: "" }, "Autoenhance decides"), ...options);
    element.append(make("div", {}, make("label", { htmlFor: select.id }, title), select));
  }
}

/** Return the selected values, as pairs of field and value. */
export const selectedOptions = (element) =>
  [...element.querySelectorAll("select")].filter((one) => one.value).map((one) => [one.name, one.value]);
