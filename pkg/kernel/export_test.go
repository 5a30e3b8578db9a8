package kernel

// Inside runs f in the Kernel's namespace.
func (k *Kernel) Inside(f func() error) error { return k.inside(f) }
