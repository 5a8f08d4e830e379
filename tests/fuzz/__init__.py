"""Whatever the bytes: every reader of headers, decoder and walker of archives ends with a result or a code of ours."""
