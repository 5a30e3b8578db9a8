package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netns"
)

// Files of a boot server.
const (
	bootDir  = labDir + "/boot"
	tftpLog  = labDir + "/tftp.log"
	bootPort = "80"
)

// bootScript loads the lab's guest, from where the script itself came from.
const bootScript = `#!ipxe
kernel vmlinuz console=ttyS0 quiet loglevel=3 panic=-1 initrd=initramfs
initrd initramfs
boot
`

// BootServer serves what a guest boots from the network: boot.ipxe with vmlinuz
// and initramfs, and iPXE itself as snponly.efi and undionly.kpxe. HTTP is served
// by this process, TFTP by dnsmasq on the node.
type BootServer struct {
	node *Node
	http http.Server
	tftp *Process
	done sync.WaitGroup

	mu   sync.Mutex
	gets []get
}

// get is one HTTP request that was answered with a file.
type get struct{ client, what string }

// ServeBoot starts a boot server on the node.
func (l *Lab) ServeBoot(ctx context.Context, node *Node) (*BootServer, error) {
	kernel, _, err := guestKernel()
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(node.Path(bootDir), 0o755); err != nil {
		return nil, fmt.Errorf("make the boot server's folder: %w", err)
	}
	for name, file := range map[string]string{
		"vmlinuz":       kernel,
		"initramfs":     path.Join("..", path.Base(initramfsPath)),
		"snponly.efi":   "/usr/lib/ipxe/snponly.efi",
		"undionly.kpxe": "/usr/lib/ipxe/undionly.kpxe",
	} {
		link := node.Path(path.Join(bootDir, name))
		if err := os.Symlink(file, link); err != nil {
			return nil, fmt.Errorf("give the boot server a file: %w", err)
		}
		if _, err := os.Stat(link); err != nil {
			return nil, fmt.Errorf("find a file to boot: %w. Fix: apt-get install --no-install-recommends ipxe", err)
		}
	}
	s := &BootServer{node: node}
	if err := s.Add("boot.ipxe", bootScript); err != nil {
		return nil, err
	}
	// Its log is written as it happens, and the files are root's to read.
	s.tftp, err = node.Start(tftpLog, "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--pid-file=",
		"--port=0", "--enable-tftp", "--tftp-root="+bootDir, "--log-facility=-")
	if err != nil {
		return nil, err
	}
	if err := Wait(ctx, func() error {
		out, err := node.Exec(ctx, "ss", "-Hlun", "sport = :69")
		if err == nil && out == "" {
			err = fmt.Errorf("dnsmasq does not listen: %s", l.log(tftpLog))
		}
		return err
	}); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	listener, err := node.Listen("tcp4", ":"+bootPort)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.http.Handler = s.count(http.FileServer(http.Dir(node.Path(bootDir))))
	s.done.Go(func() { _ = s.http.Serve(listener) }) // http.ErrServerClosed
	return s, nil
}

// Add adds a file, or replaces it.
func (s *BootServer) Add(name, text string) error {
	return s.node.WriteFile(path.Join(bootDir, name), text, 0o644)
}

// Close ends the server.
func (s *BootServer) Close() error {
	err := errors.Join(s.http.Close(), s.tftp.Signal(syscall.SIGTERM))
	s.done.Wait()
	return err
}

// count notes each file that is asked for and there.
func (s *BootServer) count(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := os.Stat(s.node.Path(path.Join(bootDir, path.Clean(r.URL.Path)))); err == nil && r.Method == http.MethodGet {
			client, _, _ := net.SplitHostPort(r.RemoteAddr)
			agent, _, _ := strings.Cut(r.UserAgent(), "/")
			s.mu.Lock()
			s.gets = append(s.gets, get{client, "http " + r.URL.Path + " by " + cmp.Or(agent, "nobody")})
			s.mu.Unlock()
		}
		next.ServeHTTP(w, r)
	})
}

var tftpSent = regexp.MustCompile(`sent ` + bootDir + `(\S+) to (\S+)`)

// Loaded are the files that the client of this address has loaded: like "http
// /boot.ipxe by iPXE" (once when in several parts), then like "tftp /boot.ipxe",
// each in order.
func (s *BootServer) Loaded(client string) []string {
	var loaded []string
	s.mu.Lock()
	for _, g := range s.gets {
		if g.client == client {
			loaded = append(loaded, g.what)
		}
	}
	s.mu.Unlock()
	log, err := s.node.ReadFile(tftpLog)
	if err != nil {
		return append(loaded, err.Error())
	}
	for _, m := range tftpSent.FindAllStringSubmatch(log, -1) {
		if m[2] == client {
			loaded = append(loaded, "tftp "+m[1])
		}
	}
	return slices.Compact(loaded)
}

// Listen listens on the node, from this process.
func (n *Node) Listen(network, address string) (net.Listener, error) {
	type result struct {
		listener net.Listener
		err      error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and nobody else gets
		// into the namespace.
		runtime.LockOSThread()
		listener, err := n.listen(network, address)
		done <- result{listener, err}
	}()
	r := <-done
	return r.listener, r.err
}

func (n *Node) listen(network, address string) (net.Listener, error) {
	ns, err := netns.GetFromPath(n.netns())
	if err != nil {
		return nil, fmt.Errorf("open the network namespace of %s: %w", n.Name, err)
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		return nil, fmt.Errorf("enter the network namespace of %s: %w", n.Name, err)
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", n.Name, err)
	}
	return listener, nil
}
