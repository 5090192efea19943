"""Pushes the folder that it is given, and says what became of it. huggingface_hub alone is imported
beside our upload. Run by test_round_trip.py."""

import json
import sys

from huggingface_hub import HfApi

from spikenlp.hub.publish import upload

token, folder, repo_id = sys.argv[1:]
HfApi(token=token).create_repo(repo_id, exist_ok=True)
try:
    print(json.dumps({"commit": upload(folder, repo_id, token=token, commit_message="push").oid}))
except Exception as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
