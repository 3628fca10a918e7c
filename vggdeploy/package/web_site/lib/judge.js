// The rule of vggdeploy.parity.judge for the golden pair: how far answers may stand from the reference's.

/** A number as Python's format has it with "g" and so many digits. */
export function general(value, digits) {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  const power = Number(exponent);
  if (power >= -4 && power < digits) return trimmed(value.toFixed(digits - 1 - power));
  return `${trimmed(mantissa)}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}

/** Compares one output row by row; all sums are FP64. */
export class Comparison {
  constructor(output) {
    this.output = output;
    this.samples = 0;
    this.errorSq = 0;
    this.referenceSq = 0;
    this.cosineMin = 1;
  }

  /** Add rows of `size` values each. */
  update(reference, candidate, size) {
    for (let start = 0; start < reference.length; start += size) {
      let [aa, bb, ab] = [0, 0, 0];
      let [zeroA, zeroB] = [true, true];
      for (let index = start; index < start + size; index++) {
        const [a, b] = [reference[index], candidate[index]];
        this.errorSq += (b - a) ** 2;
        aa += a * a;
        bb += b * b;
        ab += a * b;
        zeroA &&= a === 0;
        zeroB &&= b === 0;
      }
      this.referenceSq += aa;
      const norms = Math.sqrt(aa) * Math.sqrt(bb);
      // Two rows of zeros are alike; a row of zeros and another are not.
      const cosine = zeroA && zeroB ? 1 : norms > 0 ? ab / norms : 0;
      this.cosineMin = Math.min(this.cosineMin, Math.max(-1, Math.min(1, cosine)));
      this.samples += 1;
    }
  }

  get relativeL2() {
    if (this.referenceSq > 0) return Math.sqrt(this.errorSq / this.referenceSq);
    return this.errorSq === 0 ? 0 : Number.MAX_VALUE;
  }

  /** What stands in a report. */
  result() {
    return { output: this.output, samples: this.samples, relative_l2: this.relativeL2, cosine_min: this.cosineMin };
  }
}

/** Why answers are refused; none where they pass. `limits` are those of vggdeploy's site.json for this kind of image. */
export function judge(outputs, limits) {
  const wrong = [];
  for (const { output, relative_l2: l2, cosine_min: cosine } of outputs) {
    const allowed = limits.allowed[output] ?? Infinity;
    // "not ≤" rather than ">": a NaN is wrong too.
    if (!(l2 <= limits.relative_l2)) {
      wrong.push(`${output}: relative L2 ${general(l2, 3)} is above ${general(limits.relative_l2, 6)}`);
    } else if (!(l2 <= allowed)) {
      const recorded = `${general(limits.record_factor, 6)} times what was measured when the variant was made`;
      wrong.push(`${output}: relative L2 ${general(l2, 3)} is above ${general(allowed, 3)}, ${recorded}`);
    }
    if (!(cosine >= limits.cosine)) {
      wrong.push(`${output}: smallest cosine ${cosine.toFixed(6)} is below ${general(limits.cosine, 6)}`);
    }
  }
  return wrong;
}

/** Relative L2 of two answers to the same picture; infinite where one has a value that is no number. */
export function distance(reference, candidate) {
  const seen = new Comparison("");
  seen.update(reference, candidate, reference.length);
  const l2 = seen.relativeL2;
  return Number.isNaN(l2) ? Infinity : l2;
}

/** The largest relative L2 of a proof, over all its pictures: those of the golden pair and those for stress. */
export const worst = ({ outputs, stress }) => Math.max(...[...outputs, ...stress].map((output) => output.relative_l2));
