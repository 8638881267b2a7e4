"""From loss to quality: benchmark scores of a sweep's runs against their losses, in two steps."""
