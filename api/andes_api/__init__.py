"""An OpenAI-compatible gateway that serves text streams by quality of experience.

``app.create_app(settings)`` is the whole gateway. What decides (``admission``, ``breaker``, ``pacing``, ``sse``, ``upstream``
and the core's ``routing``, ``stream_forecast``, ``resume``) is pure: time is an argument, what to do comes back as data.
Nothing here imports SGLang, torch or kopf.
"""
