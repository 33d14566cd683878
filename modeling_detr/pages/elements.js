"use strict";

// What the scripts of live pages and of curves share.
const make = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const live = (name) => document.querySelector(`.live[data-name="${name}"]`);
const sectionOf = (element) => element.closest("section, details");
