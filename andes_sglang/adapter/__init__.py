"""The only room that imports SGLang, torch and transformers.

``launch`` starts SGLang with our plugin, ``plugin`` puts the policy in charge, ``scheduler`` applies its decisions.
"""
