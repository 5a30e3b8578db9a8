package config

import (
	"time"

	"github.com/slash32/slash32/pkg/marks"
)

// DefaultNetwork is the name of the network that a NIC is in when its
// annotation names none.
const DefaultNetwork = "default"

// Bounds of what the configuration may give.
const (
	MaxNetworks = 128 // their tables fit the priorities and mark bits (package marks)
	MinMTU      = 576 // bytes; what every IPv4 host takes (RFC 791 §3.2)
	MaxServers  = 8   // DNS, and again NTP
	MaxSearch   = 8

	MinLease = time.Minute
	MaxLease = 365 * 24 * time.Hour

	MinProbeWait = 50 * time.Millisecond
	MaxProbeWait = 3 * time.Second

	MinV6Only = 5 * time.Minute // MIN_V6ONLY_WAIT (RFC 8925 §3.4)
	MaxV6Only = 24 * time.Hour
	MaxRelays = 4

	MaxSubnets = 16 // of a network
	MaxAddrs   = 8  // of this host in it

	MaxServices = 32 // of the host, that a network opens
	MaxLocal    = 256

	// A classic lease's prefix has room for a network address, a gateway, the
	// guest and a broadcast address, and is no more of the Internet than needed.
	MinClassic = 8
	MaxClassic = 30
)

// Default is the configuration without any file: one network, "default".
func Default() Config {
	return Config{
		Networks:   map[string]Network{DefaultNetwork: newNetwork(DefaultNetwork)},
		Forwarding: "manage",
		Launch:     "auto",
		LibvirtURI: "qemu:///system",
		LogDrops:   true,
		Coexist:    Coexist{Docker: Warn, UFW: Warn, Firewalld: Warn},
	}
}

// newNetwork is a network with every key at its default.
func newNetwork(name string) Network {
	return Network{
		Name:     name,
		Uplink:   "auto",
		Table:    TableMain,
		Gateway4: marks.DefaultGateway4,
		Gateway6: marks.DefaultGateway6,
		Lease:    time.Hour,
		NAT:      NATPrivate,
		Announce: true,
		Conflict: "refuse",

		ProbeWait: 500 * time.Millisecond,

		Client:  "auto",
		Classic: 24,
		Decline: "offer",
	}
}
