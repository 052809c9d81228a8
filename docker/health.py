"""Exit code 0 if the Flower program at $HEALTH_URL answers, by the certificate of $HEALTH_CA."""

import os
import ssl
import urllib.request

context = ssl.create_default_context(cafile=os.environ.get("HEALTH_CA"))
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({}),  # it is this container, or its neighbour: never by a proxy
    urllib.request.HTTPSHandler(context=context),
)
opener.open(os.environ["HEALTH_URL"], timeout=5).close()  # raises, and so exits with 1, otherwise
