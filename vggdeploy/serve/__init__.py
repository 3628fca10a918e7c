"""An engine over HTTP: FastAPI and uvicorn over `vggdeploy.AsyncEngine`."""
