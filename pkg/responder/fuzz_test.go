package responder_test

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

// FuzzRespond holds every reply to checkReply: it goes to this guest, comes
// from the gateway, is no longer than the MTU, has right checksums and is the
// same each time. The frame's source is set to the guest's MAC, for anything
// else is refused at once.
func FuzzRespond(f *testing.F) {
	for _, s := range sets() {
		for _, m := range s.messages {
			f.Add(m.frame)
		}
	}
	narrow, bare := fullNIC(), fullNIC()
	narrow.MTU = 1280
	narrow.Search = []string{strings.Repeat("a", 63) + "." + strings.Repeat("b", 63)}
	narrow.V6.Addrs = append(narrow.V6.Addrs, make([]netip.Addr, 30)...)
	for i := range narrow.V6.Addrs[2:] {
		narrow.V6.Addrs[2+i] = netip.AddrFrom16([16]byte{0x20, 1, 15: byte(i)})
	}
	bare.V6.Addrs, bare.V6.DNS, bare.V4.DNS, bare.Search, bare.MTU = nil, nil, nil, nil, 576
	booting := fullNIC()
	booting.V4.Client, booting.V4.V6Only, booting.Portal = "auto", 1800, "https://portal.example.org/api"
	booting.V4.Boots = []responder.Boot{
		{For: "bios", File: "undionly.kpxe", Server: strange4}, {For: "ipxe", File: "http://192.0.2.7/x.ipxe", Once: true}, {For: "http", File: "http://192.0.2.7/x.efi"},
	}
	booting.V4.Options = []responder.Option{{Code: 43, Data: make([]byte, 255)}, {Code: 224, Data: make([]byte, 255), Force: true}}
	for _, client := range []string{biosPXE, uefiHTTP, biosIPXE, linux} {
		f.Add(client4{kind: wire.DHCP4Discover, options: client}.frame())
		f.Add(client4{kind: wire.DHCP4Request, options: client + opt4Addr(wire.Opt4RequestedIP, guest4)}.frame())
	}
	waning := prefixNIC()
	waning.V6.Addrs = []netip.Addr{guest6, onLink6}
	waning.V6.Terms = responder.Terms{{Addr: guest6, Preferred: epoch.Unix() + 9, Until: epoch.Unix() + 99}, {Addr: offLink6, Until: epoch.Unix() + 9}}
	nics := []responder.NIC{fullNIC(), narrow, bare, booting, prefixNIC(), waning}
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
