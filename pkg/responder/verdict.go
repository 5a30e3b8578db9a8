package responder

// Verdict names what became of one frame. Every frame gets exactly one; the
// counters by verdict are what an operator sees of a guest's behaviour.
type Verdict uint8

// The verdicts. Those marked "answered" come with a reply, all others are
// silent.
const (
	NotOurs   Verdict = iota // another protocol, port or destination: the kernel's business
	Truncated                // shorter than its headers say, or they contradict each other
	VLAN                     // 802.1Q or 802.1ad tagged: a VM's link carries no tags
	Fragment                 // an IP fragment; none of the messages needs one
	Foreign                  // Ethernet source is not the guest's MAC

	ARPReply        // answered: a request for the gateway
	ARPProxy        // answered: a request for another address, of a guest with a classic lease
	ARPOwn          // a request or probe for an address of the guest: duplicate detection
	ARPAnnouncement // sender and target are the same address
	ARPOther        // a request for an address that is nobody's here
	ARPNotRequest   // a reply, or an operation that is not in RFC 826
	ARPForeign      // the sender's hardware address is not the guest's
	ARPMalformed    // not Ethernet and IPv4

	NDAdvert     // answered: a solicitation for the gateway
	NDProxy      // answered: a solicitation for another address of an on-link prefix
	NDDefend     // answered: duplicate detection of the gateway's address
	NDOwn        // a solicitation for an address of the guest: duplicate detection
	NDOther      // a solicitation for an address that is nobody's here
	NDNotSolicit // a neighbour advertisement or redirect
	NDRogueRA    // the guest sends router advertisements
	NDHopLimit   // hop limit below 255: not from this link (RFC 4861 §6.1, §7.1)
	NDMalformed  // breaks a validation rule of RFC 4861 §6.1.1 or §7.1.1

	RAReply     // answered: a router solicitation
	RAMulticast // answered: a router solicitation from the unspecified address

	DHCP4Offer           // answered: DISCOVER
	DHCP4Ack             // answered: REQUEST in SELECTING
	DHCP4AckReboot       // answered: REQUEST in INIT-REBOOT
	DHCP4AckRenew        // answered: REQUEST in RENEWING
	DHCP4AckRebind       // answered: REQUEST in REBINDING
	DHCP4AckInform       // answered: INFORM
	DHCP4Nak             // answered: REQUEST for an address that is not the guest's
	DHCP4OtherServer     // REQUEST that names another server
	DHCP4Decline         // the guest says that somebody else has its address
	DHCP4Release         // the guest gives its address back
	DHCP4NoAddress       // the guest has no IPv4 address in its binding
	DHCP4NoAutoConfigure // answered: DISCOVER of a guest without an address: it is not to give itself one
	DHCP4Held            // a DISCOVER or REQUEST so soon after a DECLINE that nothing is offered
	DHCP4Foreign         // chaddr is not the guest's MAC
	DHCP4Relay           // giaddr is set: the guest plays relay
	DHCP4Relayed         // passed on to all servers
	DHCP4RelayedToOne    // passed on to the server that the lease is from
	DHCP4Answered        // a server's answer, passed on to the guest
	DHCP4LateAnswer      // a server's answer that came second, or to nothing that was asked
	DHCP4BadAnswer       // what came as a server's answer and is none for this guest
	DHCP4RelayLoop       // came through too many relays
	DHCP4Rogue           // a server's message: the guest plays server
	DHCP4Unknown         // BOOTP without a message type, or one that is no client's
	DHCP4Malformed       // not parseable

	DHCP6Advertise    // answered: SOLICIT
	DHCP6RapidReply   // answered: SOLICIT with rapid commit
	DHCP6Request      // answered: REQUEST
	DHCP6Confirm      // answered: CONFIRM, addresses are the guest's
	DHCP6NotOnLink    // answered: CONFIRM, addresses are not the guest's
	DHCP6Renew        // answered: RENEW
	DHCP6Rebind       // answered: REBIND
	DHCP6Release      // answered: RELEASE
	DHCP6Decline      // answered: DECLINE
	DHCP6Information  // answered: INFORMATION-REQUEST
	DHCP6UseMulticast // answered: a message that must not be unicast (RFC 8415 §18.4)
	DHCP6Unicast      // a message that is discarded when unicast (RFC 8415 §18.4)
	DHCP6OtherServer  // names another server
	DHCP6NothingToDo  // CONFIRM without an address (RFC 8415 §18.3.3)
	DHCP6Relay        // a relay's message
	DHCP6Relayed      // passed on to the servers
	DHCP6Answered     // a server's answer, passed on to the guest
	DHCP6LateAnswer   // a server's answer to nothing that was asked
	DHCP6BadAnswer    // what came as a server's answer and is none for this guest
	DHCP6Rogue        // a server's message: the guest plays server
	DHCP6Unknown      // a message type that is no client's
	DHCP6Malformed    // not parseable, or breaks a rule of RFC 8415 §16

	NumVerdicts = iota
)

var verdictNames = [NumVerdicts]string{
	NotOurs:   "not_ours",
	Truncated: "truncated",
	VLAN:      "vlan",
	Fragment:  "fragment",
	Foreign:   "foreign",

	ARPReply:        "arp_reply",
	ARPProxy:        "arp_proxy",
	ARPOwn:          "arp_own",
	ARPAnnouncement: "arp_announcement",
	ARPOther:        "arp_other",
	ARPNotRequest:   "arp_not_request",
	ARPForeign:      "arp_foreign",
	ARPMalformed:    "arp_malformed",

	NDAdvert:     "nd_advert",
	NDProxy:      "nd_proxy",
	NDDefend:     "nd_defend",
	NDOwn:        "nd_own",
	NDOther:      "nd_other",
	NDNotSolicit: "nd_not_solicit",
	NDRogueRA:    "nd_rogue_ra",
	NDHopLimit:   "nd_hop_limit",
	NDMalformed:  "nd_malformed",

	RAReply:     "ra_reply",
	RAMulticast: "ra_multicast",

	DHCP4Offer:           "dhcp4_offer",
	DHCP4Ack:             "dhcp4_ack",
	DHCP4AckReboot:       "dhcp4_ack_reboot",
	DHCP4AckRenew:        "dhcp4_ack_renew",
	DHCP4AckRebind:       "dhcp4_ack_rebind",
	DHCP4AckInform:       "dhcp4_ack_inform",
	DHCP4Nak:             "dhcp4_nak",
	DHCP4OtherServer:     "dhcp4_other_server",
	DHCP4Decline:         "dhcp4_decline",
	DHCP4Release:         "dhcp4_release",
	DHCP4NoAddress:       "dhcp4_no_address",
	DHCP4NoAutoConfigure: "dhcp4_no_autoconfigure",
	DHCP4Held:            "dhcp4_held",
	DHCP4Foreign:         "dhcp4_foreign",
	DHCP4Relay:           "dhcp4_relay",
	DHCP4Relayed:         "dhcp4_relayed",
	DHCP4RelayedToOne:    "dhcp4_relayed_to_one",
	DHCP4Answered:        "dhcp4_answered",
	DHCP4LateAnswer:      "dhcp4_late_answer",
	DHCP4BadAnswer:       "dhcp4_bad_answer",
	DHCP4RelayLoop:       "dhcp4_relay_loop",
	DHCP4Rogue:           "dhcp4_rogue",
	DHCP4Unknown:         "dhcp4_unknown",
	DHCP4Malformed:       "dhcp4_malformed",

	DHCP6Advertise:    "dhcp6_advertise",
	DHCP6RapidReply:   "dhcp6_rapid_reply",
	DHCP6Request:      "dhcp6_request",
	DHCP6Confirm:      "dhcp6_confirm",
	DHCP6NotOnLink:    "dhcp6_not_on_link",
	DHCP6Renew:        "dhcp6_renew",
	DHCP6Rebind:       "dhcp6_rebind",
	DHCP6Release:      "dhcp6_release",
	DHCP6Decline:      "dhcp6_decline",
	DHCP6Information:  "dhcp6_information",
	DHCP6UseMulticast: "dhcp6_use_multicast",
	DHCP6Unicast:      "dhcp6_unicast",
	DHCP6OtherServer:  "dhcp6_other_server",
	DHCP6NothingToDo:  "dhcp6_nothing_to_do",
	DHCP6Relay:        "dhcp6_relay",
	DHCP6Relayed:      "dhcp6_relayed",
	DHCP6Answered:     "dhcp6_answered",
	DHCP6LateAnswer:   "dhcp6_late_answer",
	DHCP6BadAnswer:    "dhcp6_bad_answer",
	DHCP6Rogue:        "dhcp6_rogue",
	DHCP6Unknown:      "dhcp6_unknown",
	DHCP6Malformed:    "dhcp6_malformed",
}

// String is the verdict's stable name in snake_case.
func (v Verdict) String() string {
	if v >= NumVerdicts {
		return "unknown"
	}
	return verdictNames[v]
}

// Class is a kind of message that shares one token bucket.
type Class uint8

// The classes.
const (
	ClassNone  Class = iota // no protocol of ours
	ClassARP                // ARP
	ClassND                 // neighbour solicitations and advertisements
	ClassRA                 // router solicitations
	ClassDHCP4              // DHCPv4
	ClassDHCP6              // DHCPv6

	NumClasses = iota
)

// Class tells which protocol the frame belonged to.
func (v Verdict) Class() Class {
	switch {
	case v >= DHCP6Advertise && v < NumVerdicts:
		return ClassDHCP6
	case v >= DHCP4Offer && v < DHCP6Advertise:
		return ClassDHCP4
	case v >= RAReply && v < DHCP4Offer:
		return ClassRA
	case v >= NDAdvert && v < RAReply:
		return ClassND
	case v >= ARPReply && v < NDAdvert:
		return ClassARP
	}
	return ClassNone
}

// String is the class's stable name.
func (c Class) String() string {
	switch c {
	case ClassARP:
		return "arp"
	case ClassND:
		return "nd"
	case ClassRA:
		return "ra"
	case ClassDHCP4:
		return "dhcp4"
	case ClassDHCP6:
		return "dhcp6"
	}
	return "none"
}
