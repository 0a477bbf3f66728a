"""Events of devices and groups, as the kernel reports them."""
