"use strict";

const element = (id) => document.getElementById(id);
const show = (id, shown) => { element(id).hidden = !shown; };
let service = null, job = null, upload = null, recorder = null;

function fail(message) {
  element("error").textContent = message;
  show("error", true);
  show("status", false);
}

function status(message, value, max) {
  element("message").textContent = message;
  const bar = element("bar");
  if (value === null || !max) bar.removeAttribute("value");
  else { bar.max = max; bar.value = value; }
  show("status", true);
}

function reset() {
  show("error", false);
  show("result", false);
  element("overlay").pause();
}

async function request(method, path) {
  const response = await fetch(path, { method });
  if (response.status === 204) return null;
  const body = await response.json();
  if (!response.ok) throw new Error(typeof body.detail === "string" ? body.detail : response.statusText);
  return body;
}

function send(blob, name) {
  reset();
  if (blob.size > service.max_bytes) return fail(`${name}: larger than ${Math.round(service.max_bytes / 2 ** 20)} MiB`);
  upload = new XMLHttpRequest();
  upload.open("POST", `api/jobs?name=${encodeURIComponent(name.slice(0, 200) || "video")}`);
  upload.setRequestHeader("Content-Type", "application/octet-stream");
  upload.upload.onprogress = (event) => status(`Uploading ${name}`, event.loaded, event.total);
  upload.onerror = () => fail("The server does not answer.");
  upload.onload = () => {
    let body = {};
    try { body = JSON.parse(upload.responseText); } catch { /* not JSON: shown as the status below */ }
    if (upload.status === 202) follow(body);
    else fail(typeof body.detail === "string" ? body.detail : `The server refused the video (${upload.status}).`);
    upload = null;
  };
  status(`Uploading ${name}`, 0, blob.size);
  upload.send(blob);
}

async function follow(started) {
  job = started;
  const id = job.id;
  try {
    while (job && job.id === id && (job.state === "waiting" || job.state === "running")) {
      if (job.state === "waiting") status(`${job.name}: waits for ${job.ahead} other video(s)`, null, 0);
      else status(`${job.name}: ${job.done} of ${job.seconds ?? "?"} s`, job.seconds ? job.done : null, job.seconds);
      await new Promise((done) => setTimeout(done, 500));
      if (!job || job.id !== id) return;
      job = await request("GET", `api/jobs/${id}`);
    }
  } catch (error) {
    return fail(error.message);
  }
  if (!job) return;
  if (job.state === "failed") return fail(job.error);
  finish();
}

function finish() {
  show("status", false);
  const base = `api/jobs/${job.id}`;
  element("title").textContent = job.name;
  const video = element("overlay");
  video.replaceChildren();
  video.src = `${base}/overlay.mp4`;
  const track = document.createElement("track");
  Object.assign(track, { kind: "captions", label: "what sounds", srclang: "en", src: `${base}/sounding.vtt` });
  video.append(track);
  element("timeline").src = `${base}/timeline.png`;
  const downloads = element("downloads");
  downloads.replaceChildren("Download: ");
  for (const file of job.files) {
    const link = document.createElement("a");
    Object.assign(link, { className: "button", href: `${base}/${file}`, textContent: file, download: file });
    downloads.append(link);
  }
  element("kept").textContent = `The files are kept for ${Math.round(service.keep_seconds / 60)} minutes.`;
  show("result", true);
}

async function record() {
  if (recorder) return recorder.stop();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: true, audio: true });
    const chunks = [];
    recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => chunks.push(event.data);
    recorder.onstop = () => {
      const type = recorder.mimeType;
      recorder = null;
      for (const track of stream.getTracks()) track.stop();
      show("preview", false);
      element("record").classList.remove("recording");
      element("record").textContent = "Record from camera and microphone";
      send(new Blob(chunks, { type }), "recording");
    };
    const preview = element("preview");
    preview.srcObject = stream;
    show("preview", true);
    preview.play();
    recorder.start();
    setTimeout(() => recorder && recorder.stop(), service.max_seconds * 1000);
    element("record").classList.add("recording");
    element("record").textContent = "Stop and segment";
  } catch (error) {
    recorder = null;
    fail(`No recording: ${error.message}`);
  }
}

async function stop() {
  const old = job;
  job = null;
  if (upload) upload.abort();
  upload = null;
  show("status", false);
  show("result", false);
  if (old) await request("DELETE", `api/jobs/${old.id}`).catch(() => null);
}

async function start() {
  service = await request("GET", "api/service");
  element("classes").textContent = `The model knows: ${service.classes.join(", ")}.`;
  element("limits").textContent =
    `At most ${Math.round(service.max_bytes / 2 ** 20)} MiB and ${service.max_seconds} s. ` +
    `Videos and results stay on this machine and are removed after ${Math.round(service.keep_seconds / 60)} minutes.`;
  service.examples.forEach((name, number) => {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: name });
    button.onclick = () => { reset(); request("POST", `api/examples/${number}`).then(follow, (error) => fail(error.message)); };
    element("examples").append(button);
  });
  show("examples", service.examples.length > 0);
  const drop = element("drop"), file = element("file");
  file.onchange = () => { if (file.files.length) send(file.files[0], file.files[0].name); file.value = ""; };
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const dropped = event.dataTransfer.files[0];
    if (dropped) send(dropped, dropped.name);
  };
  element("record").onclick = record;
  element("cancel").onclick = stop;
  element("remove").onclick = stop;
}

start().catch((error) => fail(error.message));
