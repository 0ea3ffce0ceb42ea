#!/bin/sh
# One reply whole, then one streamed, with nothing but curl.
#   CAUSERIE_URL=http://127.0.0.1:8000/v1 sh clients/examples/curl.sh
set -eu
url="${CAUSERIE_URL:-http://127.0.0.1:8000/v1}"
key="${CAUSERIE_API_KEY:-unused}"

ask() { # $1: further fields of the request
    curl --silent --show-error --fail-with-body --no-buffer "$url/chat/completions" \
        --header 'content-type: application/json' --header "authorization: Bearer $key" \
        --data '{"model": "default", "messages": [{"role": "user", "content": "what is a token?"}], "max_tokens": 32'"$1"'}'
    echo
}

ask ''
ask ', "stream": true'
