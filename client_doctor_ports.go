// client_doctor_ports.go is what berth doctor HOST finds out about ports: which of the
// passive ones are let through, datagrams, and pages that strangers can read. It is apart
// from client_doctor.go, which is one conversation with the box: here many ports are
// knocked at, at once.

package main

import (
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"
)

// --- passive ports ---

// portState is what became of a connection to a port.
type portState uint8

const (
	portOpen     portState = iota // the box had opened it, and it was reached
	portRefused                   // somebody says that nobody listens
	portFiltered                  // no answer
	portBlocked                   // the box had opened it, and somebody refuses
	portMissed                    // the box had opened it, and no answer
)

// passive tries the ports: some that the box opens for it, and then the rest of the range,
// where the answer that nobody listens says that the way is free.
func (f *farBox) passive() {
	states := map[uint16]portState{}
	if f.inside {
		f.opened(states)
	} else if !f.told {
		f.say(levelNote, "ports|without a login the passive ports are not known|berth doctor$p --ports 50000-50999 $1", f.spec.name)
		return
	}
	opened := len(states)
	if f.told {
		f.scan(states)
	} else { // the least that the range can be
		f.ports = portRange{65535, 0}
		for p := range states {
			f.ports.Low, f.ports.High = min(f.ports.Low, p), max(f.ports.High, p)
		}
	}
	if len(states) == 0 {
		return
	}
	for state, what := range []string{"open", "let through, as it seems: nothing listens there now, and that is said", "filtered: no answer",
		"opened by the box, and refused on the way", "opened by the box, and filtered: no answer"} {
		switch text := f.portRanges(states, portState(state)); {
		case text == "":
		case portState(state) <= portRefused:
			f.say(levelOK, "ports|$1 "+what, text)
		default:
			f.blocked(levelFail, "tcp", f.ports.String(), "ports|$4 "+what, text)
		}
	}
	args := []string{itoa(len(states)), itoa(f.ports.count()), f.ports.String(), f.spec.name, itoa(opened)}
	if !f.told {
		f.say(levelNote, "ports.rest|$5 ports were opened for this: the box does not tell which it has|berth doctor$p --ports LOW-HIGH $4", args...)
	} else if len(states) < f.ports.count() {
		f.say(levelNote, "ports.rest|$1 of the $2 passive ports $3 were tried|berth doctor$p --all-ports $4", args...)
	}
}

// opened has the box open ports until they repeat, or there are enough.
func (f *farBox) opened(states map[uint16]portState) {
	most := farOpened
	if f.inv.on("all-ports") {
		most = 1 << 16
	}
	if f.told {
		most = min(most, f.ports.count())
	}
	silent, again := 0, 0
	for len(states) < most && silent < farSilent && again < farAgain && f.ctx.Err() == nil {
		at, err := f.epsv()
		if err != nil {
			at, err = f.pasv()
		}
		if err != nil {
			f.say(levelFail, "ports|after $1 ports there is no other: $2|journalctl -u berth -e   on the box", itoa(len(states)), err.Error())
			return
		}
		if _, been := states[at.Port()]; been {
			again++
			continue
		}
		again = 0
		switch err := f.knock(f.address, itoa(int(at.Port()))); {
		case err == nil:
			states[at.Port()] = portOpen
			silent = 0
		case filtered(err):
			states[at.Port()] = portMissed
			silent++
		default:
			states[at.Port()] = portBlocked
		}
	}
}

// scan connects to the other ports of the range, many at once.
func (f *farBox) scan(states map[uint16]portState) {
	n, step := f.ports.count(), 1
	if !f.inv.on("all-ports") {
		step = (n + farPorts - 1) / farPorts
	}
	var mu mutex
	var dials sync.WaitGroup
	next := 0
	for range farParallel {
		dials.Go(func() {
			for {
				mu.Lock()
				port := f.ports.Low + uint16(next)
				over := next >= n || f.ctx.Err() != nil
				next += step
				_, been := states[port]
				mu.Unlock()
				if over {
					return
				}
				if been {
					continue
				}
				err, state := f.knock(f.address, itoa(int(port))), portFiltered
				switch {
				case err == nil:
					state = portOpen
				case f.ctx.Err() != nil:
					return
				case errors.Is(err, syscall.ECONNREFUSED):
					state = portRefused
				}
				mu.Lock()
				states[port] = state
				mu.Unlock()
			}
		})
	}
	dials.Wait()
}

// portRanges writes the ports of one state as 50000-50009, 50011. A range goes on over
// ports that were not tried.
func (f *farBox) portRanges(states map[uint16]portState, want portState) string {
	text, ranges, n := "", 0, 0
	from, last := -1, -1
	for port := int(f.ports.Low); port <= int(f.ports.High)+1; port++ {
		state, tried := states[uint16(port)]
		end := port > int(f.ports.High)
		switch {
		case tried && !end && state == want:
			if from < 0 {
				from = port
			}
			last = port
			n++
		case from >= 0 && (tried || end):
			if ranges++; ranges <= farRanges {
				text += ", " + portRange{uint16(from), uint16(last)}.String()
			}
			from = -1
		}
	}
	if ranges > farRanges {
		return itoa(n) + " ports (" + text[2:] + " ...)"
	}
	return strings.TrimPrefix(text, ", ")
}

// --- datagrams and pages ---

func (f *farBox) datagrams() {
	spec := *f.spec
	spec.address = joinHostPort(f.address.String(), f.port)
	b := &box{spec: &spec, silence: f.box.silence, ctx: f.ctx}
	s, err := datagramTime(b)
	if err != nil {
		l := levelNote
		if f.isBerth {
			l = levelWarn
		}
		f.blocked(l, "udp", f.port, "datagram|no answer by datagram: berth time --udp, ping --udp and discover do not work|@listen.datagram = [\"[::]:$2\"]")
		return
	}
	f.say(levelOK, "datagram|datagrams come back in $1", s.trip.Round(time.Millisecond/100).String())
	if !f.inside || !f.isBerth {
		f.clock(s)
	}
	conn, err := dialDatagram(b)
	if err != nil {
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(datagramWait))
	buf := make([]byte, datagramGainFactor*helloSize+datagramGainHeader)
	io.WriteString(conn, "hello "+strings.Repeat(" ", helloSize-len("hello ")))
	n, _ := conn.Read(buf)
	var h helloInfo
	if json.Unmarshal(buf[:n], &h) != nil {
		f.say(levelNote, "hello|it does not answer hello, so berth discover does not find it|berth version   on the box")
		return
	}
	f.say(levelOK, "hello|berth discover finds $1, version $2", shortShown(h.Name, maxShownName), shortShown(h.Version, maxShownName))
	if h.Ports.TLS != 0 {
		port := itoa(h.Ports.TLS)
		if err := f.knock(f.address, port); err != nil {
			f.blocked(levelWarn, "tcp", port, "implicit|the port of implicit TLS, $2, is not reached: $4", errno(err))
		} else {
			f.say(levelOK, "implicit|the port of implicit TLS, $1, is open", port)
		}
	}
}

// farHTTPPort and farOutsideBox are changed by tests, which have no outside.
var (
	farHTTPPort   = "9621" // where berth's pages are unless configured
	farOutsideBox = func(a netip.Addr) bool { return !a.IsLoopback() }
)

// pages looks whether strangers can read the metrics, which name users.
func (f *farBox) pages() {
	if !f.isBerth || !farOutsideBox(f.address) {
		return
	}
	at := joinHostPort(f.address.String(), farHTTPPort)
	status, page := 0, ""
	if f.knock(f.address, farHTTPPort) == nil { // in less time than fetchPage has, for who is not let through
		status, page, _ = f.fetchPage(at, "/metrics", false)
	}
	if status == httpOK && hasText(page, "berth_build_info") {
		f.say(levelNote, "http|http://$1/metrics is open to everybody here, and names users|@listen.http = [\"127.0.0.1:9621\"]|@http.users = [\"USER\"]", at)
	} else {
		f.say(levelOK, "http|the metrics are not open to everybody here")
	}
}
