/** What went wrong (`message`), what to do about it (`fix`), and, where a proof failed, all that it found (`proof`). */
export class VggdeployError extends Error {
  constructor(message, fix = "", proof = null) {
    super(message);
    this.name = "VggdeployError";
    this.fix = fix;
    this.proof = proof;
  }
}
