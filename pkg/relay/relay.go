// Package relay carries DHCP messages between the VMs' responders, which have no
// socket towards the network, and the DHCP servers. It owns the UDP sockets (ports
// 67 and 547) and one datagram socket in each VM's directory. It does not
// understand what a guest wrote: it fills in giaddr, sends a VM's messages, if they
// are marked as that VM's, to its servers and to nobody else, and hands an answer to
// the VM that the relay agent information in it names. What an answer grants is the responder's to say.
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/responder"
)

// VM is a VM with a relayed NIC. All its NICs are there, in the binding's order.
type VM struct {
	UUID uuid.UUID
	Dir  string // of the VM, below the run directory
	NICs []NIC
}

// NIC says where one NIC's guest is relayed to; without servers, nowhere.
type NIC struct {
	MAC      mac.Addr
	Servers4 []netip.Addr
	Servers6 []netip.Addr
	Source4  netip.Addr // giaddr; not valid: the address that the route to a server has
}

func (n NIC) servers(family uint8) []netip.Addr {
	switch family {
	case 4:
		return n.Servers4
	case 6:
		return n.Servers6
	}
	return nil
}

// Relay carries the messages. Fill in the exported fields, then Run it.
type Relay struct {
	// Changed is called when a responder says that its leases have changed.
	Changed func(vm uuid.UUID)
	// Credentials tells whether a process of that user may be a responder.
	Credentials func(uid uint32) bool
	Log         logrus.FieldLogger

	source func(given, server netip.Addr) (netip.Addr, error) // sourceTo, but in tests

	once sync.Once
	set  chan []VM

	mu      sync.Mutex
	vms     map[uuid.UUID]*vm
	sources map[netip.Addr]*net.UDPConn // by our address
	said    map[string]time.Time
	wg      sync.WaitGroup
}

// vm is one VM that is served.
type vm struct {
	VM
	conn *net.UnixConn
	raw  syscall.RawConn // of conn

	messages budget // to servers, which others share
	news     budget // of leases, each of which costs a pass
}

// What is taken of one VM: messages and news a second, and how many at once. A
// guest has its own limits in the responder.
const (
	messageRate, messageBurst = 50, 200
	newsRate, newsBurst       = 5, 20
)

// sayAgain is the shortest time between two equal lines in the log.
const sayAgain = time.Minute

func (r *Relay) init() {
	r.once.Do(func() {
		r.set = make(chan []VM, 1)
		r.vms = map[uuid.UUID]*vm{}
		r.sources = map[netip.Addr]*net.UDPConn{}
		r.said = map[string]time.Time{}
		if r.source == nil {
			r.source = sourceTo
		}
	})
}

// Set replaces the VMs. It does not block; the newest set counts.
func (r *Relay) Set(vms []VM) {
	r.init()
	select {
	case <-r.set:
	default:
	}
	select {
	case r.set <- vms:
	default: // another caller was faster
	}
}

// Run serves until ctx ends.
func (r *Relay) Run(ctx context.Context) error {
	r.init()
	for {
		select {
		case <-ctx.Done():
			r.apply(nil)
			r.wg.Wait()
			return nil
		case vms := <-r.set:
			r.apply(vms)
		}
	}
}

// apply opens what is new and closes what is gone. What cannot be opened is said
// and tried again with the next set.
func (r *Relay) apply(vms []VM) {
	r.mu.Lock()
	defer r.mu.Unlock()
	want, sources, all := map[uuid.UUID]bool{}, map[netip.Addr]bool{}, true
	for _, v := range vms {
		want[v.UUID] = true
		have := r.vms[v.UUID]
		if have != nil && !here(have) { // the VM's directory was wiped
			r.drop(v.UUID)
			have = nil
		}
		if have == nil {
			var err error
			if have, err = r.open(v); err != nil {
				r.say(err)
				continue
			}
			r.vms[v.UUID] = have
		}
		have.VM = v
		for _, n := range v.NICs {
			for _, s := range n.Servers4 {
				all = r.want(sources, n.Source4, s, 67) && all
			}
			for _, s := range n.Servers6 {
				all = r.want(sources, netip.Addr{}, s, 547) && all
			}
		}
	}
	for id := range r.vms {
		if !want[id] {
			r.drop(id)
		}
	}
	for s, u := range r.sources {
		// A server to which there is no route at the moment may need one of these.
		if all && !sources[s] {
			_ = u.Close()
			delete(r.sources, s)
		}
	}
}

func (r *Relay) drop(id uuid.UUID) {
	_ = r.vms[id].conn.Close()
	delete(r.vms, id)
}

// want notes the source towards a server and opens it. It is false when there is
// no route to the server.
func (r *Relay) want(wanted map[netip.Addr]bool, given, server netip.Addr, port uint16) bool {
	addr, err := r.source(given, server)
	if err != nil {
		r.say(fmt.Errorf("relay to %s: %w", server, err))
		return false
	}
	wanted[addr] = true
	if r.sources[addr] != nil {
		return true
	}
	u, err := listenUDP(netip.AddrPortFrom(addr, port))
	if err != nil {
		r.say(fmt.Errorf("relay to %s: %w. Fix: stop what else listens on UDP port %d of %s, or set relay.source4 to another address of this host", server, err, port, addr))
		return true
	}
	r.sources[addr] = u
	r.wg.Go(func() { r.fromServers(u, addr) })
	return true
}

// sourceTo is our address towards a server.
func sourceTo(given, server netip.Addr) (netip.Addr, error) {
	if given.IsValid() {
		return given, nil
	}
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(server, 67)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), nil
}

func (r *Relay) say(err error) { r.sayOf(err.Error(), err) }

// sayOf logs not more than one line a minute of one subject.
func (r *Relay) sayOf(subject string, err error) {
	now := time.Now()
	if now.Sub(r.said[subject]) < sayAgain {
		return
	}
	if len(r.said) > 256 {
		clear(r.said)
	}
	r.said[subject] = now
	r.Log.Warn(err)
}

// fromVM passes on what a VM's responder sends.
func (r *Relay) fromVM(v *vm) {
	buf := make([]byte, responder.RelayHeader+responder.MaxRelayed+1)
	oob := make([]byte, credentialSpace)
	for {
		n, on, _, _, err := v.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				r.Log.Warnf("relay of VM %s: %v", v.UUID, err)
			}
			return
		}
		uid, ok := sender(oob[:on])
		if !ok || !r.Credentials(uid) || n < responder.RelayHeader || n == len(buf) || buf[0] != responder.RelayVersion {
			continue
		}
		r.forward(v, buf[1], buf[2], buf[3], buf[responder.RelayHeader:n])
	}
}

// forward sends a message of a VM to its servers.
func (r *Relay) forward(v *vm, index, family, server uint8, message []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	switch {
	case family == 0:
		if v.news.take(now, newsRate, newsBurst) {
			r.Changed(v.UUID)
		}
		return
	case int(index) >= len(v.NICs) || !v.messages.take(now, messageRate, messageBurst):
		return
	}
	n := v.NICs[index]
	servers := n.servers(family)
	if server != responder.RelayAll {
		if int(server) >= len(servers) {
			return
		}
		servers = servers[server : server+1]
	}
	circuit, port := responder.CircuitID(v.UUID, n.MAC), uint16(67)
	if family == 6 {
		port = 547
		if !own6(message, circuit) {
			return
		}
	} else if !own4(message, circuit, n.MAC) {
		return
	}
	for _, to := range servers {
		given := n.Source4
		if family == 6 {
			given = netip.Addr{}
		}
		addr, err := r.source(given, to)
		if err == nil {
			u := r.sources[addr]
			if u == nil {
				continue // said when it could not be opened
			}
			if family == 4 && !stamp(message, addr) {
				return
			}
			_, err = u.WriteToUDPAddrPort(message, netip.AddrPortFrom(to, port))
		}
		if err != nil {
			r.say(fmt.Errorf("relay a message of VM %s to %s: %w", v.UUID, to, err))
		}
	}
}

// fromServers hands servers' answers to the VMs that they are for.
func (r *Relay) fromServers(u *net.UDPConn, addr netip.Addr) {
	buf := make([]byte, responder.RelayHeader+responder.MaxRelayed+1)
	for {
		n, from, err := u.ReadFromUDPAddrPort(buf[responder.RelayHeader:])
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP error about a server that is down
		}
		if n > responder.MaxRelayed {
			continue
		}
		r.deliver(addr, from.Addr().Unmap(), buf[:responder.RelayHeader+n])
	}
}

// deliver hands one answer over if it is of one of the NIC's servers.
func (r *Relay) deliver(addr, from netip.Addr, message []byte) {
	body := message[responder.RelayHeader:]
	family, circuit := uint8(4), []byte(nil)
	if addr.Is4() {
		circuit = circuit4(body, addr)
	} else {
		family, circuit = 6, circuit6(body)
	}
	if len(circuit) != responder.CircuitLen {
		return
	}
	id, guest := uuid.UUID(circuit[:16]), mac.Addr(circuit[16:])
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.vms[id]
	if v == nil {
		return
	}
	for i, n := range v.NICs {
		if n.MAC != guest {
			continue
		}
		for j, s := range n.servers(family) {
			if s == from {
				message[0], message[1], message[2], message[3] = responder.RelayVersion, uint8(i), family, uint8(j)
				// A responder that is being restarted loses an answer; the guest
				// asks again.
				v.send(message)
				return
			}
		}
		r.sayOf("answers for "+circuitText(id, guest), fmt.Errorf("an answer for VM %s came from %s, which is none of the servers that it is relayed to, and is dropped. Fix: if it is another address of one of them, add it to the servers", id, from))
	}
}

func circuitText(id uuid.UUID, guest mac.Addr) string { return id.String() + " " + guest.String() }

// budget is a token bucket.
type budget struct {
	full time.Time
}

func (b *budget) take(now time.Time, rate, burst int) bool {
	interval := time.Second / time.Duration(rate)
	if b.full.Before(now) {
		b.full = now
	}
	if b.full.Add(interval).Sub(now) > time.Duration(burst)*interval {
		return false
	}
	b.full = b.full.Add(interval)
	return true
}
