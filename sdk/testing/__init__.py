"""What tests share: conformance suites that plug-ins inherit, random models, and a sample build."""
