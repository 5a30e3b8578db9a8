package virt

import (
	"fmt"
	"sync"

	"libvirt.org/go/libvirt"
)

// events is libvirt's event loop. There is one per process, whatever we do:
// that is why this is a variable of the package.
var events eventLoop

// eventLoop runs while somebody needs it.
type eventLoop struct {
	mu         sync.Mutex
	registered bool
	timer      int // wakes the loop
	users      int
	stop       chan struct{} // closed to end the loop
	stopped    chan struct{} // closed when it has ended
}

// enter makes sure that the loop runs until leave is called. It comes before the
// connection is opened: one that was opened without a loop never has events.
func (l *eventLoop) enter() (leave func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.registered {
		if err := libvirt.EventRegisterDefaultImpl(); err != nil {
			return nil, fmt.Errorf("set up libvirt's event loop (is libvirt0 installed?): %w", err)
		}
		if l.timer, err = libvirt.EventAddTimeout(-1, func(int) {}); err != nil {
			return nil, fmt.Errorf("set up libvirt's event loop: %w", err)
		}
		l.registered = true
	}
	if l.users == 0 {
		l.stop, l.stopped = make(chan struct{}), make(chan struct{})
		go run(l.stop, l.stopped)
	}
	l.users++
	return l.leave, nil
}

func (l *eventLoop) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.users--
	if l.users > 0 {
		return
	}
	close(l.stop)
	libvirt.EventUpdateTimeout(l.timer, 0)
	<-l.stopped
	libvirt.EventUpdateTimeout(l.timer, -1)
}

func run(stop <-chan struct{}, stopped chan<- struct{}) {
	defer close(stopped)
	for {
		select {
		case <-stop:
			return
		default:
		}
		// An error is one round that did nothing; the next one may.
		_ = libvirt.EventRunDefaultImpl()
	}
}
