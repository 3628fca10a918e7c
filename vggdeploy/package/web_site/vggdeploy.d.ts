/** A file, the bytes of one, or what a canvas can draw. PNG, JPEG, WebP, GIF and BMP are read. */
export type Picture =
  | Blob | ArrayBuffer | Uint8Array | ImageData | ImageBitmap
  | HTMLImageElement | HTMLVideoElement | HTMLCanvasElement | OffscreenCanvas;

export type BackendName = "webgpu" | "wasm";

/** How one output compares with the FP32 PyTorch model's, over `samples` known pictures. */
export interface OutputProof {
  readonly output: string;
  readonly samples: number;
  readonly relative_l2: number;
  readonly cosine_min: number;
}

/**
 * What became of one backend. `slower`: it took more than twice another's time, so it was not proven and is not used. `whole`:
 * nothing of the model ran elsewhere. `milliseconds`: the median of one picture's time.
 */
export interface BackendReport {
  readonly name: BackendName;
  readonly title: string;
  readonly passed: boolean;
  readonly slower: boolean;
  readonly whole: boolean;
  readonly reasons: readonly string[];
  readonly outputs: readonly OutputProof[];
  readonly stress: readonly OutputProof[];
  readonly milliseconds: number | null;
}

/**
 * How files whose pixels travel with the model were prepared here: to the bit, within two levels, or not at all. Of those within
 * two levels, `flips` got another class.
 */
export interface PreparingReport {
  readonly files: number;
  readonly exact: number;
  readonly within: number;
  readonly flips: number;
  readonly refused: readonly string[];
  readonly reasons: readonly string[];
}

/** A model that was proven on this device. */
export interface Model {
  readonly name: string;
  readonly variant: string;
  readonly labels: readonly string[];
  readonly outputs: readonly string[];
  readonly backend: BackendName;
  readonly title: string;
  readonly milliseconds: number;
  readonly proof: { readonly reports: readonly BackendReport[]; readonly preparing: PreparingReport; readonly images: number };
}

export type Progress =
  | { readonly stage: "loading"; readonly bytes: number }
  | { readonly stage: "proving"; readonly backend: string; readonly images: number; readonly of: number };

export interface LoadOptions {
  /** SHA-256 of site.json in hexadecimal digits: with it, no file of the site can be exchanged unseen. */
  digest?: string;
  /** Which may be tried. Of those that are proven the fastest is taken. Default: both. */
  backends?: readonly BackendName[];
  onProgress?: (progress: Progress) => void;
}

export interface Prediction {
  readonly label: string;
  readonly index: number;
  readonly probability: number;
}

/** What went wrong, what to do about it, and what a failed proof found. */
export class VggdeployError extends Error {
  readonly fix: string;
  readonly proof: {
    readonly reports: readonly BackendReport[];
    readonly preparing: PreparingReport | null;
    readonly reasons: readonly string[];
  } | null;
}

/** Load the site at `address` (default: beside the document), and prove it here. Rejects with a `VggdeployError`. */
export function load(address?: string | URL, options?: LoadOptions): Promise<Model>;

/** The `top` most probable classes, best first, and the time that the model took. */
export function classify(
  model: Model, picture: Picture, options?: { top?: number },
): Promise<{ predictions: Prediction[]; milliseconds: number }>;

/** One output as a vector (default: `fc7`, or the only one that is no class score). Feature maps are averaged over all positions. */
export function embed(model: Model, picture: Picture, options?: { output?: string; normalise?: boolean }): Promise<Float32Array>;
