package kernel

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	genPID  = 2 // NFTA_GEN_PROC_PID
	genName = 3 // NFTA_GEN_PROC_NAME
)

// Writer is a program that has changed our table.
type Writer struct {
	Program string // the thread's name, at most 15 bytes
	PID     int    // the thread's; the program may have ended
}

// writers are those that were seen since somebody asked.
type writers struct {
	mu   sync.Mutex
	list []Writer
}

// ourPrograms is how the names of slash32's own programs begin.
const ourPrograms = "slash32"

// note reads who made a transaction.
func (w *writers) note(b []byte) {
	const most = 16
	var x Writer
	nftAttrs(b, func(typ uint16, d []byte) {
		switch typ {
		case genPID:
			x.PID = int(netU32(d))
		case genName:
			x.Program = cString(d)
		}
	})
	if x == (Writer{}) || strings.HasPrefix(x.Program, ourPrograms) || ownThread(x.PID) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.list) < most && !slices.Contains(w.list, x) {
		w.list = append(w.list, x)
	}
}

func ownThread(id int) bool {
	_, err := os.Stat("/proc/self/task/" + strconv.Itoa(id))
	return err == nil
}

// Writers are the other programs that have changed our table since the last call, as
// the kernel told Watch of them, at most 16. Of routes, rules and links it does not
// tell who changed them.
func (k *Kernel) Writers() []Writer {
	k.writers.mu.Lock()
	defer k.writers.mu.Unlock()
	list := k.writers.list
	k.writers.list = nil
	return list
}
