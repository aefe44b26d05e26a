// Numbers, times and states as people read them.

const DASH = "\u2013";
const THIN = "\u2009";
const DOT = " \u00b7 ";

export const STATES = {
  queued: "Queued",
  starting: "Starting",
  running: "Running",
  waiting_for_teacher: "Waiting for teacher",
  stopping: "Stopping",
  stopped: "Stopped",
  succeeded: "Succeeded",
  failed: "Failed",
  interrupted: "Interrupted",
};

export const ACTIVE = new Set(["starting", "running", "waiting_for_teacher", "stopping"]);
export const isActive = (run) => ACTIVE.has(run.state);
export const isLive = (run) => isActive(run) || run.state === "queued";

// Time with a trainer; goes on between two messages while there is one.
export function elapsed(run, now) {
  return run.elapsed_seconds + (isActive(run) ? Math.max(0, now - run.received) : 0);
}

export const joined = (...parts) => parts.filter((part) => part).join(DOT);

export function loss(value) {
  return value === null || value === undefined ? DASH : value.toFixed(4);
}

export function count(value) {
  if (value === null || value === undefined) return DASH;
  return Math.round(value).toLocaleString("en").replaceAll(",", THIN);
}

// 1234567 -> "1.2 M"
export function short(value) {
  if (value === null || value === undefined) return DASH;
  for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= size) {
      const scaled = value / size;
      return `${scaled.toFixed(scaled < 10 ? 1 : 0)}${THIN}${unit}`;
    }
  }
  return String(Math.round(value));
}

export function percent(value) {
  if (value === null || value === undefined) return DASH;
  return `${(100 * value).toFixed(value < 0.0995 && value > 0 ? 1 : 0)}${THIN}%`;
}

// 0.5234 -> "52.3 %", for shares that are compared
export function share(value) {
  return value === null || value === undefined ? DASH : `${(100 * value).toFixed(1)}${THIN}%`;
}

// 1234567 -> "1.2 MB"
export function size(bytes) {
  if (bytes === null || bytes === undefined) return DASH;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  const power = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log10(Math.max(1, bytes)) / 3)));
  const scaled = bytes / 1000 ** power;
  return `${scaled.toFixed(power > 0 && scaled < 9.95 ? 1 : 0)}${THIN}${units[power]}`;
}

// 0.0123 -> "12 ms"
export function wait(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 0.9995) return `${Math.round(1000 * seconds)}${THIN}ms`;
  if (seconds < 99.5) return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)}${THIN}s`;
  return duration(seconds);
}

export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  const padded = String(whole % 60).padStart(2, "0");
  if (hours === 0) return `${minutes}:${padded}`;
  return `${hours}:${String(minutes).padStart(2, "0")}:${padded}`;
}

export function clockTime(unixSeconds) {
  return new Date(1000 * unixSeconds).toLocaleTimeString("en-GB");
}

export function dateTime(unixSeconds) {
  const parts = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
  return new Date(1000 * unixSeconds).toLocaleString("en-GB", parts);
}

export function learnsFrom(run) {
  if (run.representation === null) return "Labels alone";
  const what = {
    top_k: `top ${run.top_k}`,
    sampled: `sampled ${run.num_draws}`,
  }[run.representation] ?? run.representation;
  const name = what[0].toUpperCase() + what.slice(1);
  return joined(name, `\u03b1\u00a0${run.alpha}`, `T\u00a0${run.temperature}`);
}

// What a student is made of: a model as it is, some of its layers, or adapters on either.
export function studentOf(run) {
  const every = run.keep_every_nth_layer;
  const base = every === null ? run.student : `every ${ordinal(every)} layer of ${run.student}`;
  const text = run.lora_rank === null ? base : `LoRA ${run.lora_rank} on ${base}`;
  return base === text && every !== null ? text[0].toUpperCase() + text.slice(1) : text;
}

// Where the trained student is, on the control plane's machine.
export const exportOf = (folder) => `${folder}/export`;

function ordinal(number) {
  const isTeen = Math.floor(number / 10) % 10 === 1;
  return `${number}${(isTeen ? null : { 1: "st", 2: "nd", 3: "rd" }[number % 10]) ?? "th"}`;
}

// What a person should know about the state, or an empty string where the state says it all.
export function explanation(run, now) {
  if (run.resumes_at !== null) {
    const seconds = Math.ceil(run.resumes_at - now);
    const when = seconds > 0 ? `in ${seconds} s` : "as soon as a device is free";
    return `${sentence(run.message) || "It was interrupted."} Goes on by itself ${when}.`;
  }
  if (run.stale_since !== null) {
    return `The trainer has said nothing since ${clockTime(run.stale_since)}.`;
  }
  if (run.state === "queued") {
    const place = run.queue_position === 1 ? "Next to start." : `Place ${run.queue_position}.`;
    return run.queue_position === null ? "" : `${place} Waits for a free device.`;
  }
  return sentence(run.message);
}

// A name stays as it is written elsewhere: "data.path: ...", "trainer.log ...", "loss/val ...".
export function sentence(message) {
  if (!message) return "";
  const isName = /^\w*[._/]\w/.test(message);
  const text = isName ? message : message[0].toUpperCase() + message.slice(1);
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
