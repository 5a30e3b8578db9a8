package responder

import (
	"encoding/binary"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/wire"
)

// request6 is what matters of a client's message, all IAs taken together.
type request6 struct {
	kind     uint8
	clientID []byte
	serverID []byte
	rapid    bool
	accepts  bool // a RECONFIGURE
	wants    wants6
	ias      bool // there is an IA of any kind
	ianas    bool // there is an IA_NA
	iapds    bool // there is an IA_PD
	listed   bool // an IA lists an address
	foreign  bool // an IA lists an address that is not the guest's

	// Of firmware (RFC 5970 §3.3, RFC 8415 §21.15, §21.16).
	hasArch   bool
	arch      uint16
	pxe, http bool
	ipxe      bool
}

// wants6 is the options that a client asks for, of those that are not sent anyway.
type wants6 struct {
	sntp, ntp, bootFile, bootParams, aftr, exclude bool
}

// add reads the data of an option request.
func (w *wants6) add(data []byte) {
	for ; len(data) >= 2; data = data[2:] {
		switch binary.BigEndian.Uint16(data) {
		case wire.Opt6SNTP:
			w.sntp = true
		case wire.Opt6NTP:
			w.ntp = true
		case wire.Opt6BootFileURL:
			w.bootFile = true
		case wire.Opt6BootFileParam:
			w.bootParams = true
		case wire.Opt6AFTRName:
			w.aftr = true
		case wire.Opt6PDExclude:
			w.exclude = true
		}
	}
}

// parse reads the options; ok is false when they or those within an IA are
// malformed.
func (r *request6) parse(m *wire.DHCP6, t *dhcp6Templates, now int64) (ok bool) {
	r.kind = m.Type
	o := m.Options()
	for o.Next() {
		switch o.Code {
		case wire.Opt6ClientID:
			if len(o.Data) == 0 || len(o.Data) > maxDUID || r.clientID != nil {
				return false
			}
			r.clientID = o.Data
		case wire.Opt6ServerID:
			if len(o.Data) == 0 || r.serverID != nil {
				return false
			}
			r.serverID = o.Data
		case wire.Opt6RapidCommit:
			r.rapid = true
		case wire.Opt6ReconfigureAccept:
			r.accepts = true
		case wire.Opt6OptionRequest:
			r.wants.add(o.Data)
		case wire.Opt6Architecture:
			if len(o.Data) >= 2 && !r.hasArch {
				r.hasArch, r.arch = true, binary.BigEndian.Uint16(o.Data)
			}
		case wire.Opt6UserClass:
			r.ipxe = r.ipxe || string(o.Data) == "\x00\x04iPXE"
		case wire.Opt6VendorClass: // an enterprise number, then strings with their length
			if len(o.Data) > 6 {
				r.pxe = r.pxe || startsWith(o.Data[6:], vendorPXE)
				r.http = r.http || startsWith(o.Data[6:], vendorHTTP)
			}
		case wire.Opt6IANA, wire.Opt6IATA, wire.Opt6IAPD:
			r.ias = true
			r.ianas = r.ianas || o.Code == wire.Opt6IANA
			r.iapds = r.iapds || o.Code == wire.Opt6IAPD
			ia, ok := wire.ParseIA6(o.Code, o.Data)
			if !ok || !r.parseIA(&ia, t, now) {
				return false
			}
		}
	}
	return !o.Malformed()
}

func (r *request6) parseIA(ia *wire.IA6, t *dhcp6Templates, now int64) (ok bool) {
	o := ia.Options()
	for o.Next() {
		switch {
		case ia.Code == wire.Opt6IAPD && o.Code == wire.Opt6IAPrefix:
			if _, ok := wire.ParseIAPrefix6(o.Data); !ok {
				return false
			}
		case ia.Code != wire.Opt6IAPD && o.Code == wire.Opt6IAAddr:
			a, ok := wire.ParseIAAddr6(o.Data)
			if !ok {
				return false
			}
			r.listed = true
			r.foreign = r.foreign || !t.has(a.Addr, now)
		}
	}
	return !o.Malformed()
}

// firmware is the client as far as it decides on what to boot.
func (r *request6) firmware() firmware {
	return firmware{pxe: r.pxe, http: r.http, ipxe: r.ipxe, hasArch: r.hasArch, arch: r.arch}
}

func (v Verdict) answers6() bool { return v >= DHCP6Advertise && v <= DHCP6UseMulticast }

// judge6 applies the rules of RFC 8415 §16 on which messages to discard.
func (l *Link) judge6(r *request6, unicast bool, now int64) Verdict {
	toServer := false // must name a server
	switch r.kind {
	case wire.DHCP6Request, wire.DHCP6Renew, wire.DHCP6Release, wire.DHCP6Decline:
		toServer = true
	}
	information := r.kind == wire.DHCP6InformationRequest
	switch {
	case r.clientID == nil && !information,
		r.serverID == nil && toServer,
		r.serverID != nil && !toServer && !information,
		r.ias && information:
		return DHCP6Malformed
	case r.serverID != nil && string(r.serverID) != marks.ServerDUID:
		return DHCP6OtherServer
	case unicast && !toServer:
		return DHCP6Unicast
	case unicast:
		return DHCP6UseMulticast
	}
	switch r.kind {
	case wire.DHCP6Solicit:
		if r.rapid && (r.ianas && l.dhcp6.gives(now) || r.iapds && l.prefixes.delegates()) {
			return DHCP6RapidReply
		}
		return DHCP6Advertise
	case wire.DHCP6Request:
		return DHCP6Request
	case wire.DHCP6Confirm:
		switch {
		case !r.listed:
			return DHCP6NothingToDo
		case r.foreign:
			return DHCP6NotOnLink
		}
		return DHCP6Confirm
	case wire.DHCP6Renew:
		return DHCP6Renew
	case wire.DHCP6Rebind:
		return DHCP6Rebind
	case wire.DHCP6Release:
		return DHCP6Release
	case wire.DHCP6Decline:
		return DHCP6Decline
	}
	return DHCP6Information
}
