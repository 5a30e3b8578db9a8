package responder_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

// The options by which firmware makes itself known, as seen on the wire.
var (
	biosPXE  = opt4(60, "PXEClient:Arch:00000:UNDI:002001") + opt4(93, "\x00\x00") + list4(1, 3, 43, 60, 66, 67)
	uefiPXE  = opt4(60, "PXEClient:Arch:00007:UNDI:003000") + opt4(93, "\x00\x07") + list4(1, 3, 43, 60, 66, 67)
	uefiHTTP = opt4(60, "HTTPClient:Arch:00016:UNDI:003000") + opt4(93, "\x00\x10") + list4(1, 3, 43, 60, 67)
	biosIPXE = opt4(60, "PXEClient:Arch:00000:UNDI:002001") + opt4(93, "\x00\x00") + opt4(77, "iPXE") + opt4(175, "\xb1\x05") + list4(1, 3, 43, 60, 66, 67, 175)
	uefiIPXE = opt4(60, "PXEClient:Arch:00007:UNDI:003010") + opt4(93, "\x00\x07") + opt4(77, "iPXE") + list4(1, 3, 67)
	linux    = opt4(60, "udhcp 1.35.0") + list4(1, 3, 6, 12, 121)
)

func TestBootFile(t *testing.T) {
	server := ip("203.0.113.5")
	script := responder.Boot{For: "ipxe", File: "http://203.0.113.5/boot.ipxe"}
	every := []responder.Boot{
		{For: "bios", File: "undionly.kpxe", Server: server},
		{For: "uefi", File: "ipxe.efi", Server: server},
		{For: "arm64", File: "arm.efi", Server: server},
		{For: "http", File: "http://203.0.113.5/ipxe.efi"},
		script,
		{For: "10", File: "arm32.efi", Server: server},
	}
	loader := []responder.Boot{{File: "images/ipxe.efi", Server: server}}
	for _, c := range []struct {
		name   string
		boots  []responder.Boot
		client string
		want   string // siaddr, file, 66, 67, 60
	}{
		{"bios", every, biosPXE, "203.0.113.5 undionly.kpxe 203.0.113.5 undionly.kpxe -"},
		{"uefi", every, uefiPXE, "203.0.113.5 ipxe.efi 203.0.113.5 ipxe.efi -"},
		{"uefi 9", every, strings.Replace(uefiPXE, opt4(93, "\x00\x07"), opt4(93, "\x00\x09"), 1), "203.0.113.5 ipxe.efi 203.0.113.5 ipxe.efi -"},
		{"arm64", every, strings.Replace(uefiPXE, opt4(93, "\x00\x07"), opt4(93, "\x00\x0b"), 1), "203.0.113.5 arm.efi 203.0.113.5 arm.efi -"},
		{"number", every, strings.Replace(uefiPXE, opt4(93, "\x00\x07"), opt4(93, "\x00\x0a"), 1), "203.0.113.5 arm32.efi 203.0.113.5 arm32.efi -"},
		{"unknown architecture", every, strings.Replace(uefiPXE, opt4(93, "\x00\x07"), opt4(93, "\x00\x1b"), 1), "0.0.0.0 - - - -"},
		{"http", every, uefiHTTP, "0.0.0.0 http://203.0.113.5/ipxe.efi - http://203.0.113.5/ipxe.efi HTTPClient"},
		{"ipxe of a bios", every, biosIPXE, "0.0.0.0 http://203.0.113.5/boot.ipxe - http://203.0.113.5/boot.ipxe -"},
		{"ipxe of uefi", every, uefiIPXE, "0.0.0.0 http://203.0.113.5/boot.ipxe - http://203.0.113.5/boot.ipxe -"},
		{"ipxe in the form of RFC 3004", every, strings.Replace(uefiIPXE, opt4(77, "iPXE"), opt4(77, "\x04iPXE"), 1), "0.0.0.0 http://203.0.113.5/boot.ipxe - http://203.0.113.5/boot.ipxe -"},
		{"a system", every, linux, "0.0.0.0 - - - -"},
		{"a system that asks", loader, opt4(60, "U-Boot") + list4(1, 3, 66, 67), "203.0.113.5 images/ipxe.efi 203.0.113.5 images/ipxe.efi -"},
		{"one for all", loader, uefiPXE, "203.0.113.5 images/ipxe.efi 203.0.113.5 images/ipxe.efi -"},
		{"iPXE is not given iPXE", loader, uefiIPXE, "0.0.0.0 - - - -"},
		{"one script for all", []responder.Boot{{File: "boot.ipxe", Server: server}}, biosIPXE, "203.0.113.5 boot.ipxe 203.0.113.5 boot.ipxe -"},
		{"HTTP boot takes a URL", loader, uefiHTTP, "0.0.0.0 - - - -"},
		{"only for iPXE", []responder.Boot{script}, biosPXE, "0.0.0.0 - - - -"},
		{"too long for the field", []responder.Boot{{File: strings.Repeat("f", 128), Server: server}}, biosPXE, "203.0.113.5 - 203.0.113.5 " + strings.Repeat("f", 128) + " -"},
	} {
		n := fullNIC()
		n.V4.Boots = c.boots
		var g responder.Guest
		r := tell(t, mustCompile(t, n), &g, client4{kind: wire.DHCP4Discover, options: c.client})
		or := func(s string) string {
			if s == "" {
				return "-"
			}
			return s
		}
		got := fmt.Sprintf("%s %s %s %s %s", r.SIAddr, or(r.file), or(r.options[66]), or(r.options[67]), or(r.options[60]))
		if got != c.want {
			t.Errorf("%s:\ngot  %s\nwant %s", c.name, got, c.want)
		}
		if ipxe := r.options[175] == "\xb0\x01\x01"; ipxe != g.IPXE {
			t.Errorf("%s: option 175 is %q", c.name, r.options[175])
		}
	}
}

// TestBootOnce follows a machine over several boots.
func TestBootOnce(t *testing.T) {
	n := fullNIC()
	n.V4.Boots = []responder.Boot{{For: "ipxe", File: "http://203.0.113.5/install.ipxe", Once: true}}
	l := mustCompile(t, n)
	var g responder.Guest
	boot := func(client string) string {
		t.Helper()
		tell(t, l, &g, client4{kind: wire.DHCP4Discover, options: client})
		return tell(t, l, &g, client4{kind: wire.DHCP4Request, options: client + opt4Addr(54, gateway4) + opt4Addr(50, guest4)}).file
	}
	const script = "http://203.0.113.5/install.ipxe"
	for i, step := range []struct{ client, want string }{
		{linux, ""},        // it ran from disk before: nothing was booted from the network yet
		{biosIPXE, script}, // first try
		{biosIPXE, script}, // the download failed: once more
		{linux, ""},        // the installer runs
		{biosIPXE, ""},     // and the machine goes to disk from now on
		{linux, ""},
		{biosIPXE, ""},
	} {
		if got := boot(step.client); got != step.want {
			t.Errorf("step %d: file %q, want %q", i, got, step.want)
		}
	}
	kept := g.Kept
	g = responder.Guest{Kept: kept} // another responder
	if got := boot(biosIPXE); got != "" {
		t.Errorf("after a restart: file %q", got)
	}
	if !l.Booted(&g) {
		t.Error("after a restart: not booted")
	}
	n.V4.Boots[0].File = "http://203.0.113.5/other.ipxe"
	l = mustCompile(t, n)
	if l.Booted(&g) {
		t.Error("after a change of the entries: booted")
	}
	if got := boot(biosIPXE); got != "http://203.0.113.5/other.ipxe" {
		t.Errorf("after a change of the entries: file %q", got)
	}
}
