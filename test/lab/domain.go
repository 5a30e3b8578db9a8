package lab

import (
	"bytes"
	_ "embed"
	"fmt"
	"hash/fnv"
	"text/template"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/marks"
)

// Domain is a VM to define. The zero value of each field but Name has a
// default that is a function of the name.
type Domain struct {
	Name     string
	UUID     string
	Metadata string // content of <metadata>, e.g. from Annotation
	NICs     []NIC  // default: one
	DHCPv6   bool   // the guest asks for its IPv6 addresses; else it only follows the RA
	Router   bool   // the same, and it asks for a prefix for the container behind it
	// Firmware is what the VM boots by. With any but Direct, the guest is what the
	// firmware loads from the network, or else from Disk.
	Firmware Firmware
	Disk     string // path of a raw image on HV; "": none
	// Cheap is a VM of 4 MiB without a kernel, started paused: all hooks and
	// the tap, no guest.
	Cheap bool
}

// Firmware is a way to boot.
type Firmware string

// The ways to boot.
const (
	Direct   Firmware = ""          // QEMU loads the lab's kernel
	BIOS     Firmware = "bios"      // SeaBIOS; its PXE is iPXE, in the NIC's ROM
	UEFIHTTP Firmware = "uefi-http" // OVMF, by HTTP over IPv4 first
	UEFIPXE  Firmware = "uefi-pxe"  // OVMF, by PXE over IPv4 first
)

// UEFI tells whether it is OVMF.
func (f Firmware) UEFI() bool { return f == UEFIHTTP || f == UEFIPXE }

// memory is what a VM gets, in MiB.
func (d Domain) memory() int {
	switch {
	case d.Cheap:
		return 4
	case d.Firmware != Direct:
		return 512 // OVMF, and a kernel that is unpacked from memory
	}
	return 80
}

// NIC is one <interface>.
type NIC struct {
	Type   string // default bridge
	Source string // the bridge or network; default DefaultBridge
	MAC    string
}

// Annotation is our element with these attributes, for Metadata.
func Annotation(attributes string) string {
	return fmt.Sprintf("<slash32:network xmlns:slash32='%s' %s/>", marks.Namespace, attributes)
}

// DefaultBridge is the bridge of the first NIC of the domain of this name.
func DefaultBridge(name string) string { return fmt.Sprintf("vm-%.11s", name) }

// DefaultUUID is the UUID of the domain of this name.
func DefaultUUID(name string) string {
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(name)).String()
}

// DefaultMAC is the MAC of the NIC with this index of the domain of this name.
func DefaultMAC(name string, nic int) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%s %d", name, nic)
	s := h.Sum32()
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", byte(s>>16), byte(s>>8), byte(s))
}

//go:embed host/domain.xml
var domainXML string

// XML is the domain as "virsh define" takes it.
func (d Domain) XML() (string, error) {
	if d.UUID == "" {
		d.UUID = DefaultUUID(d.Name)
	}
	if len(d.NICs) == 0 {
		d.NICs = []NIC{{}}
	}
	nics := make([]NIC, len(d.NICs))
	for i, n := range d.NICs {
		if n.Type == "" {
			n.Type = "bridge"
		}
		if n.Source == "" {
			n.Source = DefaultBridge(d.Name)
		}
		if n.MAC == "" {
			n.MAC = DefaultMAC(d.Name, i)
		}
		nics[i] = n
	}
	d.NICs = nics
	kernel, _, err := guestKernel()
	if err != nil {
		return "", err
	}
	t, err := template.New("domain").Parse(domainXML)
	if err != nil {
		return "", fmt.Errorf("parse the template of a domain: %w", err)
	}
	var b bytes.Buffer
	err = t.Execute(&b, struct {
		Domain
		Memory                     int
		Kernel, Initramfs, Console string
	}{d, d.memory(), kernel, initramfsPath, consolePath(d.Name)})
	if err != nil {
		return "", fmt.Errorf("write the XML of a domain: %w", err)
	}
	return b.String(), nil
}

func consolePath(name string) string { return labDir + "/console/" + name }
