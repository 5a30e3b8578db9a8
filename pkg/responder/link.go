package responder

// MaxReply is the length in bytes of the longest frame that Respond or
// Unsolicited returns: an Ethernet header and 1500 bytes, whatever the MTU.
const MaxReply = 14 + 1500

// Link is one NIC's compiled binding: reply templates, ready to copy. It is
// immutable and safe for concurrent use.
type Link struct {
	nic NIC
}

// Compile checks n and precomputes every reply that it can lead to.
func Compile(n NIC) (*Link, error) {
	return &Link{nic: n}, nil
}

// Respond judges one frame from the guest. The reply, if any, is written into
// out, whose capacity must be at least MaxReply, and returned as out[:n]; nil
// means silence. It is pure and allocates nothing.
func (l *Link) Respond(frame, out []byte) ([]byte, Verdict) {
	return nil, NotOurs
}

// Unsolicited writes a router advertisement to all nodes (RFC 4861 §6.2.4)
// into out, whose capacity must be at least MaxReply. It returns nil when the
// link has no IPv6.
func (l *Link) Unsolicited(out []byte) []byte {
	return nil
}
