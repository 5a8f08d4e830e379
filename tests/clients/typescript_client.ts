// A program with the types that openapi-typescript makes of /openapi.json: URL IMAGE... Prints JSON.
// tsc looks at it as well: what it takes for granted of a type is what the description promises.
import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { components, paths } from "./leukoray.js";

type Decision = components["schemas"]["Decision"];

const [url, ...names] = process.argv.slice(2) as [string, ...string[]];
const images = names.map((name) => new Blob([readFileSync(name)]));
const client = createClient<paths>({ baseUrl: url });

// Of 'binary' the generator makes a string: what is sent is a Blob.
const predict = (image: Blob) =>
  client.POST("/predict", {
    params: { header: { "X-Request-ID": "case-1" } },
    body: image as unknown as string,
    bodySerializer: (body) => body,
    headers: { "Content-Type": "application/octet-stream" },
  });

const predictFiles = (files: Blob[]) =>
  client.POST("/predict", {
    body: { files: files as unknown as string[] },
    bodySerializer: () => {
      const form = new FormData();
      files.forEach((file, place) => form.append("files", file, `${place}.img`));
      return form;
    },
  });

const probability: number[] = [];
const decision: (Decision | null)[] = [];
for (const image of images) {
  const { data } = await predict(image);
  if (typeof data !== "object" || !("probability" in data)) throw new Error("not the answer to one image");
  probability.push(data.probability);
  decision.push(data.decision);
}

const { data: many } = await predictFiles([...images, new Blob(["no image"])]);
if (typeof many !== "object" || !("results" in many)) throw new Error("not the answer to files");
const errors: string[] = many.results.flatMap((item) => (item.error ? [item.error.code] : []));
const ofFiles: number[] = many.results.flatMap((item) => (item.prediction ? [item.prediction.probability] : []));

const { error: refused, response } = await predict(new Blob(["no image"]));
if (!refused || !("error" in refused)) throw new Error("no error");
const code: string = refused.error.code;

const { error: allRefused } = await predictFiles([new Blob(["no image"]), new Blob([])]);
if (!allRefused || !("results" in allRefused)) throw new Error("no error of each file");

const { data: model } = await client.GET("/model");
if (!model) throw new Error("no model");
const { data: metadata } = await client.GET("/v2/models/{name}", { params: { path: { name: model.name } } });
const inputs: string[] = (metadata?.inputs ?? []).map((tensor) => tensor.name);

console.log(
  JSON.stringify({
    probability,
    decision,
    "of files": ofFiles,
    errors,
    refused: [response.status, code],
    "all refused": allRefused.results.map((item) => item.error?.code),
    model: model.sha256,
    inputs,
  }),
);
