package responder_test

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/responder"
)

// FuzzRespond holds every reply to checkReply: it goes to this guest, comes
// from the gateway, is no longer than the MTU, has right checksums and is the
// same each time. The frame's source is set to the guest's MAC, for anything
// else is refused at once.
func FuzzRespond(f *testing.F) {
	for _, m := range messages() {
		f.Add(m.frame)
	}
	narrow, bare := fullNIC(), fullNIC()
	narrow.MTU = 1280
	narrow.Search = []string{strings.Repeat("a", 63) + "." + strings.Repeat("b", 63)}
	narrow.V6.Addrs = append(narrow.V6.Addrs, make([]netip.Addr, 30)...)
	for i := range narrow.V6.Addrs[2:] {
		narrow.V6.Addrs[2+i] = netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i)})
	}
	bare.V6.Addrs, bare.V6.DNS, bare.V4.DNS, bare.Search, bare.MTU = nil, nil, nil, nil, 576
	nics := []responder.NIC{fullNIC(), narrow, bare}
	var links []*responder.Link
	for _, n := range nics {
		links = append(links, mustCompile(f, n))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		frame = bytes.Clone(frame)
		if len(frame) >= 12 {
			copy(frame[6:12], guestMAC[:])
		}
		out := make([]byte, responder.MaxReply)
		for i, l := range links {
			reply, v := respond(l, frame, out)
			checkReply(t, l, nics[i], frame, reply, v)
		}
	})
}
