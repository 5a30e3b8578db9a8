package annotation

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/problem"
)

// BootClients are the words that say which firmware a boot file is for.
var BootClients = []string{"bios", "uefi", "uefi32", "arm64", "http", "ipxe"}

// What fits into a DHCPv4 reply of any size (RFC 2131 §2) beside the lease.
const (
	MaxBootFile   = 255 // bytes; above 127 it is option 67 only
	MaxBootParams = 255 // bytes of all
	MaxOptionData = 255 // bytes
)

// reservedOptions are those that are computed for each reply: a value for them
// would be one that the reply contradicts. They map to what does the job.
var reservedOptions = map[uint64]string{
	0: "it is padding", 255: "it ends the options",
	1: "it follows from client", 3: "it follows from the network's gateway4", 28: "it follows from client",
	33: "write <route to=.../>, which is sent as option 121", 121: "write <route to=.../>", 249: "write <route to=.../>",
	12: "write hostname on <network>", 15: "write domain on <network>", 81: "write hostname and domain on <network>",
	50: "clients send it", 55: "clients send it", 57: "clients send it", 61: "clients send it", 77: "clients send it", 93: "clients send it", 116: "it is answered by itself",
	51: "set lease in the network", 58: "set lease in the network", 59: "set lease in the network",
	52: "it is used when it is needed", 53: "it is the type of the message", 54: "it is the network's gateway4", 56: "it is the text of a refusal",
	66: "write <boot server=... file=.../>", 67: "write <boot file=.../>",
	82: "relays use it", 90: "messages are not authenticated", 108: "set ipv6_only in the network", 114: "write <portal url=.../>", 118: "relays use it",
}

// boot reads one <boot>.
func (in *interpreter) boot(e element, file attr, got map[string]attr) (Boot, bool) {
	b := Boot{Line: e.line, File: file.value}
	if !printable(b.File) || len(b.File) > MaxBootFile {
		in.bad(file, file.value, fmt.Sprintf("is not the name of a boot file: at most %d printable ASCII characters", MaxBootFile), "write a path for TFTP, like ipxe.efi, or a URL")
		return b, false
	}
	if a, ok := got["for"]; ok {
		b.For = a.value
		if n, err := strconv.ParseUint(a.value, 10, 16); err == nil {
			b.For = strconv.FormatUint(n, 10)
		} else if b.For = in.word(a, BootClients...); b.For == "" {
			return b, false
		}
	}
	if a, ok := got["server"]; ok {
		ip, ok := in.addr(a, a.value, "write its address; names are not looked up")
		if !ok {
			return b, false
		}
		if !ip.Is4() || !reachable(ip) {
			in.bad(a, a.value, "is not an IPv4 address that a guest can reach", "write the address of the TFTP server")
			return b, false
		}
		b.Server = ip
	}
	if a, ok := got["once"]; ok {
		switch a.value {
		case "yes", "true":
			b.Once = true
		case "no", "false":
		default:
			in.bad(a, a.value, "is not yes or no", "write yes or no")
			return b, false
		}
	}
	if a, ok := got["params"]; ok {
		b.Params = strings.Join(strings.Fields(a.value), " ")
		if b.Params == "" || !printable(b.Params) || len(b.Params) > MaxBootParams {
			in.bad(a, a.value, fmt.Sprintf("is not a list of boot parameters: at most %d printable ASCII characters, with a space between two", MaxBootParams), "write them like console=ttyS0 quiet")
			return b, false
		}
		if !strings.Contains(b.File, "://") {
			in.bad(a, a.value, "are parameters for a path: DHCPv4 has no option for them, and DHCPv6 boots from a URL", "write a URL as file, or remove params")
			return b, false
		}
	}
	if !b.Server.IsValid() && !strings.Contains(b.File, "://") {
		in.add(problem.EValue, e.line, fmt.Sprintf("%s file %s names no server to load it from", in.tag("boot"), problem.Quote(b.File)), `add server="..." with the address of the TFTP server, or write a URL`)
		return b, false
	}
	if b.For == "http" && !strings.HasPrefix(b.File, "http://") && !strings.HasPrefix(b.File, "https://") {
		in.bad(file, file.value, "is not a URL, which HTTP boot takes", "write it like http://203.0.113.5/boot.efi")
		return b, false
	}
	return b, true
}

func (in *interpreter) addBoot(have []Boot, b Boot) []Boot {
	for _, other := range have {
		if other.For == b.For {
			what := "a second boot file for every firmware"
			if b.For != "" {
				what = "a second boot file for " + b.For
			}
			in.add(problem.EDuplicate, b.Line, fmt.Sprintf("%s; the first is in line %d", what, other.Line), "keep one, or write for=\"...\" with another kind of firmware")
			return have
		}
	}
	return append(have, b)
}

// option reads one <option>: a code, and a value in the form that its type says.
func (in *interpreter) option(e element, code attr, got map[string]attr) (Option, bool) {
	o := Option{Line: e.line}
	n, err := strconv.ParseUint(code.value, 10, 8)
	if err != nil {
		in.bad(code, code.value, "is not the code of a DHCPv4 option, which is from 1 to 254", "write a number, like 43")
		return o, false
	}
	if why, reserved := reservedOptions[n]; reserved {
		in.bad(code, code.value, "cannot be set", why)
		return o, false
	}
	o.Code = uint8(n)
	value, ok := got["value"]
	if !ok {
		in.add(problem.EValue, e.line, fmt.Sprintf("%s has no %s \"value\"", in.tag("option"), in.form.attr), in.example("option"))
		return o, false
	}
	kind := "text"
	if a, has := got["type"]; has {
		if kind = in.word(a, "text", "hex", "ip", "u8", "u16", "u32", "bool"); kind == "" {
			return o, false
		}
	}
	if a, has := got["force"]; has {
		switch a.value {
		case "yes", "true":
			o.Force = true
		case "no", "false":
		default:
			in.bad(a, a.value, "is not yes or no", "write yes or no")
			return o, false
		}
	}
	if o.Data, ok = in.optionData(value, kind); !ok {
		return o, false
	}
	if len(o.Data) == 0 || len(o.Data) > MaxOptionData {
		in.bad(value, value.value, fmt.Sprintf("makes an option of %d bytes; one has 1 to %d", len(o.Data), MaxOptionData), "shorten it")
		return o, false
	}
	return o, true
}

func (in *interpreter) optionData(a attr, kind string) ([]byte, bool) {
	switch kind {
	case "text":
		if !printable(a.value) {
			in.bad(a, a.value, "has characters that are not printable ASCII", `write it with type="hex"`)
			return nil, false
		}
		return []byte(a.value), true
	case "hex":
		b, err := hex.DecodeString(strings.NewReplacer(":", "", " ", "", "-", "").Replace(a.value))
		if err != nil {
			in.bad(a, a.value, "is not hexadecimal", "write two digits a byte, like 01:04:0a")
			return nil, false
		}
		return b, true
	case "ip":
		var b []byte
		for _, v := range in.list(a, MaxOptionData/4) {
			ip, ok := in.addr(a, v, "write IPv4 addresses, separated by spaces")
			if !ok {
				return nil, false
			}
			if !ip.Is4() {
				in.bad(a, v, "is not an IPv4 address", "write IPv4 addresses, separated by spaces")
				return nil, false
			}
			b = append(b, ip.AsSlice()...)
		}
		return b, true
	case "bool":
		switch a.value {
		case "true", "yes", "1":
			return []byte{1}, true
		case "false", "no", "0":
			return []byte{0}, true
		}
		in.bad(a, a.value, "is not true or false", "write true or false")
		return nil, false
	}
	bits := map[string]int{"u8": 8, "u16": 16, "u32": 32}[kind]
	var b []byte
	for _, v := range in.list(a, MaxOptionData) {
		n, err := strconv.ParseUint(v, 0, bits)
		if err != nil {
			in.bad(a, v, fmt.Sprintf("is not a number from 0 to %d", uint64(1)<<bits-1), "write a number")
			return nil, false
		}
		b = append(b, binary.BigEndian.AppendUint64(nil, n)[8-bits/8:]...)
	}
	return b, true
}

func (in *interpreter) addOption(have []Option, o Option) []Option {
	for _, other := range have {
		if other.Code == o.Code {
			in.add(problem.EDuplicate, o.Line, fmt.Sprintf("option %d is given twice; the first is in line %d", o.Code, other.Line), "keep one")
			return have
		}
	}
	return append(have, o)
}

// relays reads the servers that a guest is relayed to and adds them to have.
func (in *interpreter) relays(a attr, have []netip.Addr) []netip.Addr {
	unfit := func(ip netip.Addr) bool { return !reachable(ip) || ip.IsLinkLocalUnicast() }
	return in.addresses(a, have, MaxRelays, unfit, "is not an address that this host can reach a server at", "servers to relay to")
}

func (in *interpreter) portal(a attr) string {
	if names.URI(a.value) {
		return a.value
	}
	in.bad(a, a.value, "is not the URI of a captive portal's API", "write it like https://portal.example.org/api")
	return ""
}

// reachable tells whether ip is an address that a packet can be sent to.
func reachable(ip netip.Addr) bool {
	return !(ip.IsUnspecified() || ip.IsLoopback() || ip.IsMulticast() || (ip.Is4() && (ip.As4()[0] == 0 || ip.As4()[0] >= 240)))
}

func printable(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c > '~' })
}
