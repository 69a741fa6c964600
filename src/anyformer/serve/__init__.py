"""Trained models over HTTP: OpenAI's wire format for texts, vectors and sounds, one plain route for every recipe, and a
page. It adds no ability that Python does not have."""
