"""The Open Inference Protocol's messages, for the server and for those who ask one."""
