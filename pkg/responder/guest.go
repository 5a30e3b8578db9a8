package responder

import (
	"net/netip"
	"strings"
	"time"

	"github.com/slash32/slash32/pkg/lease"
	"github.com/slash32/slash32/pkg/wire"
)

// Guest is what a link has learned of its guest from the guest's own messages.
// The zero value knows nothing. It is small and comparable: whoever calls
// Respond keeps it and sees by == whether a frame changed it.
type Guest struct {
	Kept

	Firmware bool // the newest lease was offered to firmware, not to a system
	IPXE     bool
	Arch     uint16 // RFC 4578 §2.1, when HasArch
	HasArch  bool
	vendor   [maxVendor]byte // vendor class, cut
	vendorN  uint8
	held     int64 // Unix time in nanoseconds until which nothing is offered

	x4 exchange4
	x6 exchange6

	accepts accepts6
}

// Kept is the part of a Guest that must outlive its responder: without it a
// restart would change what the guest is answered.
type Kept struct {
	Profile Profile // of the newest lease that was offered; also decides what ARP answers
	Booting uint64  // the boot entries (their fingerprint) of which one was given to firmware
	Booted  uint64  // the same, once a system got its lease after that

	// What another server leased through us; V4.Addr and V6[i].Addr are not valid
	// where there is nothing.
	V4 lease.V4
	V6 [lease.MaxAddrs6]lease.V6
	// What was delegated, by us or by another server through us, the expired too:
	// who asks again gets the same. Prefixes[i].Prefix is not valid where there is
	// nothing.
	Prefixes [lease.MaxPrefixes]lease.Prefix
}

// maxVendor is how much of a vendor class is kept, in bytes: what tells clients
// apart stands at its beginning.
const maxVendor = 40

// holdTime is how long nothing is offered after a DECLINE, where the network
// says so.
const holdTime = 5 * time.Minute

// Vendor is the beginning of the guest's vendor class; what is not printable
// ASCII is replaced by dots.
func (g *Guest) Vendor() string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return '.'
		}
		return c
	}, string(g.vendor[:g.vendorN]))
}

// Profile is the kind of lease that a guest gets.
type Profile uint8

// The profiles.
const (
	// ProfileUnknown is before the first DHCP message.
	ProfileUnknown Profile = iota
	// ProfileRouted is a /32 whose gateway is off the link, with its routes in
	// option 121.
	ProfileRouted
	// ProfileClassic is a lease with an ordinary prefix that has the gateway in
	// it, for clients that cannot use the former; ARP is answered for everything
	// in it that is not the guest's own.
	ProfileClassic

	numProfiles = iota
)

var profileNames = [numProfiles]string{"", "routed", "classic"}

// String is the profile's name in annotation and configuration, "" for the
// unknown one.
func (p Profile) String() string {
	if p >= numProfiles {
		return ""
	}
	return profileNames[p]
}

// ParseProfile is the inverse of String; what is no profile's name is
// ProfileUnknown.
func ParseProfile(s string) Profile {
	for p := ProfileRouted; p < numProfiles; p++ {
		if s == profileNames[p] {
			return p
		}
	}
	return ProfileUnknown
}

// profile chooses the lease for the client that sent r. Asking for classless
// routes (RFC 3442, or Microsoft's number of them) is the one sign that a client
// can reach a gateway outside of its prefix; who is silent on it gets what every
// client since BOOTP understands.
func (l *Link) profile(r *request4) Profile {
	if l.forced != ProfileUnknown {
		return l.forced
	}
	if r.wants(wire.Opt4ClasslessRoutes) || r.wants(wire.Opt4MicrosoftRoutes) {
		return ProfileRouted
	}
	return ProfileClassic
}

// meet notes who asks.
func (g *Guest) meet(r *request4, p Profile) {
	g.Profile = p
	g.Firmware, g.IPXE = r.firmware.is(), r.firmware.ipxe
	g.Arch, g.HasArch = r.firmware.arch, r.firmware.hasArch
	g.vendor, g.vendorN = r.vendor, r.vendorN
}

// leased6 tells whether another server leased a to the guest.
func (g *Guest) leased6(a netip.Addr) bool {
	for _, v := range g.V6 {
		if v.Addr == a {
			return true
		}
	}
	return false
}
