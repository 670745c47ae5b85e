"""What several programs wrote one after the other with --json."""

import json
from typing import Dict, List


def documents(text: str) -> List[Dict]:
    """JSON documents one after the other."""
    decoder = json.JSONDecoder()
    found = []
    while text.strip():
        text = text.lstrip()
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found
