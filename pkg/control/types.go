// Package control is the two local sockets: the agent's (asked by the command
// and poked by the hook) and the responders' (asked by the agent and the
// command). One JSON object a line each way; the types here are the stable JSON
// of "slash32 -j".
package control

import (
	"time"

	"github.com/slash32/slash32/pkg/traffic"
)

// Request is one line to the agent's socket.
type Request struct {
	Op string `json:"op"`           // status, show, xml, poke, sync, reload
	VM string `json:"vm,omitempty"` // name, UUID, id, MAC, address or bridge
}

// Reply is the agent's one line back. Error is one line for a person.
type Reply struct {
	Error  string  `json:"error,omitempty"`
	Code   int     `json:"code,omitempty"` // exit code for the command: 3 not found, 4 not ready
	Status *Status `json:"status,omitempty"`
	VM     *VM     `json:"vm,omitempty"`
	XML    string  `json:"xml,omitempty"`
}

// Status is the host as the agent sees it.
type Status struct {
	Version         string     `json:"version"`
	Host            string     `json:"host"`
	Since           time.Time  `json:"since"`              // start of the agent
	Degraded        string     `json:"degraded,omitempty"` // e.g. "libvirt unreachable"
	DegradedSince   *time.Time `json:"degraded_since,omitempty"`
	Uplink4         string     `json:"uplink4,omitempty"`
	Uplink6         string     `json:"uplink6,omitempty"`
	Passes          uint64     `json:"passes"`
	Writes          uint64     `json:"writes"` // kernel writes since the start
	FirstPassWrites uint64     `json:"first_pass_writes"`
	LastError       string     `json:"last_error,omitempty"`
	VMs             []VM       `json:"vms"`
	Warnings        []string   `json:"warnings,omitempty"`
	Pools           []string   `json:"pools,omitempty"` // where the networks' IPv6 comes from, a line each
}

// VM is one annotated, running VM.
type VM struct {
	UUID      string    `json:"uuid"`
	Name      string    `json:"name"`
	State     string    `json:"state"`          // starting, online, stopping, error
	Text      string    `json:"text,omitempty"` // why, when not online
	Since     time.Time `json:"since"`
	NICs      []NIC     `json:"nics"`
	Responder Responder `json:"responder"`
	Problems  []string  `json:"problems,omitempty"`
	Objects   string    `json:"objects,omitempty"` // only in show: its kernel objects as text
}

// NIC is one NIC of a VM.
type NIC struct {
	MAC     string   `json:"mac"`
	Bridge  string   `json:"bridge"`
	Tap     string   `json:"tap,omitempty"`
	Network string   `json:"network"`
	NAT     string   `json:"nat"`
	Uplink  string   `json:"uplink,omitempty"`
	IPv4    []string `json:"ipv4,omitempty"`
	IPv6    []string `json:"ipv6,omitempty"`
	// Deprecated are IPv6 addresses on their way out, still routed and not given any more.
	Deprecated []string `json:"deprecated,omitempty"`
	// Forwards are ports of the host's, like "ipv4 tcp/8022 to 22".
	Forwards []string `json:"forwards,omitempty"`
	Relay    []string `json:"relay,omitempty"`  // the DHCP servers that it is relayed to
	Leases   []Lease  `json:"leases,omitempty"` // theirs
	Spoofed  Spoofed  `json:"spoofed"`
	// Traffic is what was forwarded, over all starts of the VM on this host.
	Traffic traffic.Traffic `json:"traffic"`

	Prefixes  []Prefix     `json:"prefixes,omitempty"`
	Delegated []Delegation `json:"delegated,omitempty"` // what the guest asked for and was given
}

// Prefix is an IPv6 prefix of a NIC.
type Prefix struct {
	Net        string `json:"net"`
	Mode       string `json:"mode"` // slaac, delegate or route
	Deprecated bool   `json:"deprecated,omitempty"`
}

// Delegation is a prefix that is routed to the guest's address Via.
type Delegation struct {
	Prefix  string    `json:"prefix"`
	Via     string    `json:"via"`
	Expires time.Time `json:"expires"`
}

// Lease is an address that another DHCP server leased to a relayed guest.
type Lease struct {
	Addr    string    `json:"addr"`
	Server  string    `json:"server,omitempty"` // DHCPv4: its server identifier
	Expires time.Time `json:"expires"`
}

// Spoofed counts packets that the guard met, by reason. All but Fragments were
// dropped.
type Spoofed struct {
	IPv4 uint64 `json:"ipv4"`
	IPv6 uint64 `json:"ipv6"`
	MAC  uint64 `json:"mac"`
	// Rogue counts what the guest sent as a DHCP server beyond its link.
	Rogue     uint64 `json:"rogue"`
	ARP       uint64 `json:"arp"`       // ARP whose sender is not the guest
	ND        uint64 `json:"nd"`        // neighbour discovery for what is not the guest's
	RA        uint64 `json:"ra"`        // router advertisements
	Redirect  uint64 `json:"redirect"`  // ICMP and ICMPv6 redirects
	Closed    uint64 `json:"closed"`    // to a port of the host that is not open to guests
	Apart     uint64 `json:"apart"`     // to and from others, when its network is isolated
	Fragments uint64 `json:"fragments"` // of the guest's own packets; not dropped
}

// Reasons are the counts by the name of the kernel's set: those of what was
// dropped.
func (s Spoofed) Reasons() map[string]uint64 {
	return map[string]uint64{
		"spoof4": s.IPv4, "spoof6": s.IPv6, "spoof_mac": s.MAC, "spoof_arp": s.ARP, "spoof_nd": s.ND,
		"rogue_ra": s.RA, "redirects": s.Redirect, "rogue": s.Rogue, "closed": s.Closed,
		"apart": s.Apart,
	}
}

// Responder is the state of one VM's responder: the one line of JSON that its
// socket answers to the line "status".
type Responder struct {
	Up      bool           `json:"up"`
	PID     int            `json:"pid,omitempty"`
	Version string         `json:"version,omitempty"`
	Since   time.Time      `json:"since,omitempty"`
	Binding string         `json:"binding,omitempty"` // hash of the binding file in use (hex SHA-256)
	NICs    []ResponderNIC `json:"nics,omitempty"`
}

// ResponderNIC has the counters of one link.
type ResponderNIC struct {
	Bridge   string            `json:"bridge"`
	Verdicts map[string]uint64 `json:"verdicts"` // by verdict's name, those above 0
	Last     []Exchange        `json:"last,omitempty"`
	Client   *Client           `json:"client,omitempty"` // nil: it has not asked for a lease yet

	Delegated []Delegated `json:"delegated,omitempty"`
}

// Delegated is a prefix that the guest was delegated by DHCPv6.
type Delegated struct {
	Prefix  string    `json:"prefix"`
	Via     string    `json:"via"`  // the guest's address that asked for it
	IAID    uint32    `json:"iaid"` // of the IA_PD that it is in
	Expires time.Time `json:"expires"`
}

// Client is the guest's DHCPv4 client as its messages show it.
type Client struct {
	Profile  string `json:"profile"`            // routed or classic
	Forced   bool   `json:"forced,omitempty"`   // by annotation or network; else by what it asks for
	Lease    string `json:"lease,omitempty"`    // like "203.0.113.42/24 via 203.0.113.1"
	Vendor   string `json:"vendor,omitempty"`   // the beginning of its vendor class (option 60)
	Firmware bool   `json:"firmware,omitempty"` // a boot program, not a system
	Booted   bool   `json:"booted,omitempty"`   // from the network, with once="yes"
}

// Exchange is one answered or refused frame, newest last; at most 16 are kept.
type Exchange struct {
	At      time.Time `json:"at"`
	Verdict string    `json:"verdict"`
}
