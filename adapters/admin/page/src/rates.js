// What two readings of the metrics, a moment apart, say about the time between them.

/** Finds samples of `name` whose labels include `labels`. */
function samples(reading, name, labels = {}) {
  const wanted = Object.entries(labels);
  const found = [];
  for (const family of reading.families) {
    if (!name.startsWith(family.name)) continue;
    for (const sample of family.samples) {
      if (sample.name === name && wanted.every(([key, value]) => sample.labels[key] === value)) {
        found.push(sample);
      }
    }
  }
  return found;
}

/** The sum of all samples of `name`; null when there is none. */
export function total(reading, name, labels) {
  const found = samples(reading, name, labels);
  return found.length === 0 ? null : found.reduce((sum, sample) => sum + sample.value, 0);
}

/** How much the sum of `name` rose per second. */
export function rate(before, after, name, labels) {
  const now = total(after, name, labels);
  if (now === null || !before) return null;
  const then = total(before, name, labels) ?? 0;
  return Math.max(0, now - then) / ((after.at - before.at) / 1000);
}

/** Rises per second of `name`, one entry per value of `label`, zeros left out. */
export function ratesBy(before, after, name, label) {
  if (!before) return [];
  const rises = new Map();
  for (const sample of samples(after, name)) {
    const value = sample.labels[label];
    rises.set(value, (rises.get(value) ?? 0) + sample.value);
  }
  for (const sample of samples(before, name)) {
    const value = sample.labels[label];
    rises.set(value, (rises.get(value) ?? 0) - sample.value);
  }
  const seconds = (after.at - before.at) / 1000;
  return [...rises]
    .map(([value, rise]) => [value, Math.max(0, rise) / seconds])
    .filter(([, perSecond]) => perSecond > 0)
    .sort((a, b) => b[1] - a[1]);
}

/** A quantile of a histogram over the time between two readings, in the histogram's unit. */
export function quantile(before, after, name, q, labels) {
  const buckets = new Map();
  const add = (reading, sign) => {
    for (const sample of samples(reading, `${name}_bucket`, labels)) {
      const bound = sample.labels.le === "+Inf" ? Infinity : Number(sample.labels.le);
      buckets.set(bound, (buckets.get(bound) ?? 0) + sign * sample.value);
    }
  };
  add(after, 1);
  if (before) add(before, -1);
  const ordered = [...buckets].sort((a, b) => a[0] - b[0]);
  const count = ordered.at(-1)?.[1] ?? 0;
  if (count <= 0) return null;
  let [low, seen] = [0, 0];
  for (const [bound, cumulative] of ordered) {
    if (cumulative >= q * count) {
      if (bound === Infinity) return low;
      const share = (q * count - seen) / Math.max(1e-9, cumulative - seen);
      return low + (bound - low) * share;
    }
    [low, seen] = [bound, cumulative];
  }
  return low;
}
