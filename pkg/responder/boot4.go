package responder

import (
	"hash/fnv"
	"net/netip"
	"strconv"
	"strings"

	"github.com/slash32/slash32/pkg/names"
	"github.com/slash32/slash32/pkg/wire"
)

// Processor architectures (RFC 4578 §2.1 and IANA's registry after it).
const (
	archBIOS   = 0
	archUEFI32 = 6
	archUEFI   = 7 // "EFI BC", by which x86-64 firmware calls itself
	archUEFI64 = 9
	archARM64  = 11
)

// archWords are the words of Boot.For that stand for architectures.
var archWords = map[string][]uint16{
	"bios":   {archBIOS},
	"uefi":   {archUEFI, archUEFI64},
	"uefi32": {archUEFI32},
	"arm64":  {archARM64},
}

// Vendor classes of firmware (RFC 4578 §2.4, UEFI 2.10 §24.7.3.1).
const (
	vendorPXE  = "PXEClient"
	vendorHTTP = "HTTPClient"
)

// boot4 is one Boot, compiled.
type boot4 struct {
	word   string // "", "http", "ipxe", or for architectures
	archs  []uint16
	loader bool // it is iPXE itself
	url    bool
	once   bool
	siaddr [4]byte
	file   []byte // for the file field; empty when it is too long for it
	server []byte // options, whole
	name   []byte
	class  []byte

	// Options of DHCPv6, whole; empty unless the file is a URL.
	url6, params6 []byte
}

// firmware is a client as far as it decides on what to boot.
type firmware struct {
	pxe, http bool // by its vendor class
	ipxe      bool
	hasArch   bool
	arch      uint16
}

// is tells whether the client is a boot program and not a system.
func (f firmware) is() bool { return f.pxe || f.http || f.ipxe || f.hasArch }

// compileBoots returns the entries and their fingerprint, which is not 0.
func compileBoots(boots []Boot) (bs []boot4, fingerprint uint64) {
	h := fnv.New64a()
	for _, b := range boots {
		c := boot4{
			word: b.For, archs: archWords[b.For], once: b.Once,
			loader: names.IPXE(b.File), url: strings.Contains(b.File, "://"),
		}
		if n, err := strconv.ParseUint(b.For, 10, 16); err == nil {
			c.archs = []uint16{uint16(n)}
		}
		if b.Server.Is4() {
			c.siaddr = b.Server.As4()
			c.server = wire.AppendOption4(nil, wire.Opt4TFTPServer, []byte(b.Server.String()))
		}
		if len(b.File) < fileLen {
			c.file = []byte(b.File)
		}
		c.name = wire.AppendOption4(nil, wire.Opt4BootFile, []byte(b.File))
		if b.For == "http" {
			// The firmware takes no offer without it.
			c.class = wire.AppendOption4(nil, wire.Opt4VendorClass, []byte(vendorHTTP))
		}
		if c.url {
			c.url6, c.params6 = boot6(b), bootParams6(b.Params)
		}
		bs = append(bs, c)
		for _, s := range []string{b.For, b.File, addrText(b.Server), b.Params} {
			_, _ = h.Write([]byte(s))
			_, _ = h.Write([]byte{0})
		}
	}
	return bs, h.Sum64() | 1
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// bootFor is the entry for the client that sent r, or nil.
func (l *Link) bootFor(g *Guest, r *request4) *boot4 {
	if len(l.boots) == 0 || !r.firmware.is() && !r.wants(wire.Opt4BootFile) && !r.wants(wire.Opt4TFTPServer) {
		return nil
	}
	return l.choose(g, r.firmware, false)
}

// choose finds the most particular entry that fits, of URLs alone if they are
// wanted. An iPXE that runs is never given iPXE once more, nor a machine that has
// booted an entry that is for once.
func (l *Link) choose(g *Guest, f firmware, url bool) *boot4 {
	var any, best *boot4
	for i := range l.boots {
		b := &l.boots[i]
		switch {
		case url && !b.url:
		case b.word == "":
			any = b
		case b.word == "ipxe" || b.word == "http":
			if b.word == "ipxe" && f.ipxe || b.word == "http" && f.http && !f.ipxe {
				best = b
			}
		case f.ipxe || f.http || best != nil:
		default:
			arch := uint16(archBIOS)
			if f.hasArch {
				arch = f.arch
			}
			for _, a := range b.archs {
				if a == arch && f.is() {
					best = b
				}
			}
		}
	}
	if best == nil && any != nil && !(f.http && !f.ipxe && !any.url) {
		best = any
	}
	switch {
	case best == nil, f.ipxe && best.loader, best.once && g.Booted == l.bootsID:
		return nil
	}
	return best
}

// Booted tells whether the guest has booted a file that is for once, so that its
// firmware is given none any more. Other entries than then begin anew.
func (l *Link) Booted(g *Guest) bool { return g.Booted != 0 && g.Booted == l.bootsID }

// booted follows a machine from the file that its firmware is given to the
// lease of the system that it loaded.
func (l *Link) booted(g *Guest, f firmware, b *boot4) {
	switch {
	case b != nil && b.once && f.is():
		g.Booting = l.bootsID
	case !f.is() && g.Booting == l.bootsID && l.bootsID != 0:
		g.Booted = l.bootsID
	}
}
