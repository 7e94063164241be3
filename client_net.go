// client_net.go is the verbs about the box itself and who is on it: chat, time, ping
// and discover, over frames and by datagrams. They are together, and apart from
// client_exec.go, because none of them touches a file or starts anything, and because
// what comes by datagram is from whoever says so: it is bounded, checked and shown
// with care here, and trusted for nothing.

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"
)

const (
	// maxChatLine is far more than may be said, so that the box says no and not we.
	maxChatLine = 64 << 10
	// chatSettle is how long what was said last is waited for at the end of input.
	chatSettle = time.Second
	// timeSamples is how often the time is asked for; the quickest answer counts.
	timeSamples = 4
	// datagramTries is how often an answer by datagram is asked for, each time for
	// datagramWait.
	datagramTries = 3
	// pingLinger is how long the last answers by datagram are waited for.
	pingLinger = 2 * time.Second
	// pingFastest bounds how often a box is asked.
	pingFastest = time.Millisecond
	// helloSize of a discovery datagram: an answer has at most three times as much, and
	// 512 bytes fit through every network (RFC 1122 section 3.3.2 promises 576).
	helloSize = 512
	// maxBoxes bounds what discover remembers; a network has 254 addresses, or as many
	// liars as it likes.
	maxBoxes = 4096
	// Bounds of what discover shows of one box.
	maxShownName        = 64
	maxShownFingerprint = 80 // sha256: and 64 digits
)

var datagramWait = time.Second // less in tests whose networks lose things for sure

// netJSON is a line of JSON that is fit for a terminal.
func netJSON(v any) []byte { return append(progressEscape(encodeJSON(v)), '\n') }

// --- chat ---

// A chatting is somebody who hears what is said on a box, and says something.
type chatting struct {
	inv    *invocation
	c      *remote
	prompt *linePrompt // nil: not at a terminal

	own  atomic.Int64  // messages of this user's that were heard
	more chan struct{} // own has grown
}

func runChat(inv *invocation) error {
	p, err := inv.hostPlace(inv.firstArg())
	if err != nil {
		return err
	}
	c, err := p.box.main()
	if err != nil {
		return err
	}
	t := &chatting{inv: inv, c: c, more: make(chan struct{}, 1)}
	next := t.scanner()
	if f := terminalFile(inv.stdin); f != nil {
		if t.prompt, err = newLinePrompt(f, inv.stdout, "> "); err != nil {
			return err
		}
		defer t.prompt.close()
		next = t.prompt.readLine
	}
	if !inv.on("quiet") {
		c.hear(t.message, nil, true)
		if _, err := c.do(remoteRequest{Do: "listen"}); err != nil {
			return err
		}
		if w := inv.within; w != nil { // the shell goes on with the connection
			defer c.hear(w.message, nil, false)
			defer c.do(remoteRequest{Do: "listen", Off: true})
		}
	}
	return t.talk(next)
}

// scanner reads lines that no person types.
func (t *chatting) scanner() func() (string, error) {
	lines := lineScanner(t.inv.stdin, maxChatLine)
	return func() (string, error) {
		if lines.Scan() {
			return lines.Text(), nil
		}
		if err := lines.Err(); err != nil {
			return "", &verbError{exitFailed, fmt.Sprintf("read standard input: %v", err)}
		}
		return "", io.EOF
	}
}

// talk says the lines that next gives, until there are no more.
func (t *chatting) talk(next func() (string, error)) error {
	type typed struct {
		line string
		err  error
	}
	lines, quit := make(chan typed), make(chan struct{})
	var reading sync.WaitGroup
	read := func() {
		for {
			line, err := next()
			select {
			case lines <- typed{line, err}:
			case <-quit:
				return
			}
			if err != nil {
				return
			}
		}
	}
	size := make(chan os.Signal, 1)
	if t.prompt != nil {
		reading.Go(read)
		signal.Notify(size, syscall.SIGWINCH)
		defer signal.Stop(size)
		defer reading.Wait()
		defer t.prompt.stop()
	} else {
		go read() // a Read of what is no terminal may take for ever
	}
	defer close(quit)
	said := int64(0)
	for {
		select {
		case <-t.inv.ctx.Done():
			return errInterrupted
		case <-t.c.ended:
			return t.c.broken()
		case <-size:
			t.prompt.resize()
		case l := <-lines:
			switch {
			case l.err == io.EOF:
				t.settle(said)
				return nil
			case errors.Is(l.err, errInterrupted):
				return exitWith(signalExit + int(syscall.SIGINT))
			case l.err != nil:
				return l.err
			case strings.TrimSpace(l.line) == "":
				continue
			}
			if err := t.say(l.line); err != nil {
				if t.prompt == nil || isConnError(err) || t.inv.ctx.Err() != nil {
					return err
				}
				t.prompt.show("(not said: " + err.Error() + ")\n")
				continue
			}
			said++
		}
	}
}

// say says a line, as soon as the box lets a user say one more.
func (t *chatting) say(line string) error {
	if t.prompt != nil && !t.inv.on("quiet") && !t.inv.on("json") {
		// What was typed comes again, as everybody sees it.
		cols := max(1, int(terminalSizeOf(t.prompt.file).Cols))
		rows := (utf8.RuneCountInString(line)+2)/cols + 1
		t.prompt.show("\x1b[" + itoa(rows) + "A\x1b[J")
	}
	for {
		_, err := t.c.do(remoteRequest{Do: "say", Text: strings.ToValidUTF8(line, "\uFFFD")})
		if !refusedFor(err, "rate") {
			return err
		}
		again := time.NewTimer(sayEvery)
		select {
		case <-again.C:
		case <-t.inv.ctx.Done():
			again.Stop()
			return errInterrupted
		}
	}
}

// settle waits until what was said has come back, so that the end of input does not
// cut off the last of it.
func (t *chatting) settle(said int64) {
	if t.inv.on("quiet") {
		return
	}
	late := time.NewTimer(chatSettle)
	defer late.Stop()
	for t.own.Load() < said {
		select {
		case <-t.more:
		case <-t.c.ended:
			return
		case <-late.C:
			return
		}
	}
}

// message shows an M.
func (t *chatting) message(p []byte) {
	m, ok := parseMessage(p)
	if !ok {
		return
	}
	text := shownMessage(m)
	if t.inv.on("json") {
		text = string(netJSON(m))
	}
	if t.prompt != nil {
		defer t.prompt.restoreOnPanic()
		t.prompt.show(text)
	} else {
		io.WriteString(t.inv.stdout, text)
	}
	if m.From == t.c.welcome.User {
		t.own.Add(1)
		wake(t.more)
	}
}

// parseMessage reads an M.
func parseMessage(p []byte) (*messageFrame, bool) {
	m := new(messageFrame)
	return m, json.Unmarshal(p, m) == nil
}

// shownMessage is an M as people read it, with its line end.
func shownMessage(m *messageFrame) string {
	text := shownText(m.From) + ": " + shownText(m.Text) + "\n"
	if at, err := time.Parse(time.RFC3339Nano, m.Time); err == nil {
		text = at.Local().Format("15:04:05 ") + text
	}
	if m.Lost > 0 {
		text = "(" + itoa(m.Lost) + " messages were lost: they came faster than they could be shown)\n" + text
	}
	return text
}

// --- time ---

// A timeSample is what a box says its clock is, and how far that is from ours.
type timeSample struct {
	at    time.Time
	ahead time.Duration // the box's clock
	trip  time.Duration // there and back; half of it is how far ahead may be wrong
}

func newTimeSample(at, asked time.Time, trip time.Duration) timeSample {
	return timeSample{at, at.Sub(asked.Add(trip / 2)), trip}
}

func runTime(inv *invocation) error {
	words := inv.args
	if len(words) == 0 {
		words = []string{""}
	}
	var worst error
	for _, word := range words {
		p, err := inv.hostPlace(word)
		var s timeSample
		switch {
		case err != nil:
		case inv.on("udp"):
			s, err = datagramTime(p.box)
		default:
			s, err = frameTime(p.box)
		}
		switch {
		case err == nil:
			inv.showTime(p.box.spec.name, s)
		case len(words) == 1 || inv.ctx.Err() != nil:
			return err
		default:
			inv.complain("", err)
			worst = cmp.Or(worst, exitWith(exitCode(err)))
		}
	}
	return worst
}

func frameTime(b *box) (best timeSample, err error) {
	c, err := b.main()
	if err != nil {
		return best, err
	}
	for range timeSamples {
		asked := time.Now()
		a, err := c.do(remoteRequest{Do: "time"})
		trip := time.Since(asked)
		if err != nil {
			return best, err
		}
		at, err := time.Parse(time.RFC3339Nano, a.Time)
		if err != nil {
			return best, errorf("%s answers %s, which is no time", b.spec.name, configQuote(shownText(a.Time)))
		}
		if s := newTimeSample(at, asked, trip); best.at.IsZero() || s.trip < best.trip {
			best = s
		}
	}
	return best, nil
}

// datagramTime asks by datagram. Each try has a socket of its own, so that a late
// answer to one is not taken for that of the next.
func datagramTime(b *box) (best timeSample, err error) {
	for try := range timeSamples {
		if try == datagramTries && best.at.IsZero() {
			break
		}
		conn, err := dialDatagram(b)
		if err != nil {
			return best, err
		}
		asked := time.Now()
		conn.SetDeadline(asked.Add(datagramWait))
		buf := make([]byte, 64)
		_, err = io.WriteString(conn, "time rfc3339")
		n := 0
		if err == nil {
			n, err = conn.Read(buf)
		}
		trip := time.Since(asked)
		conn.Close()
		at, perr := time.Parse(time.RFC3339Nano, strings.TrimSpace(string(buf[:n])))
		switch {
		case b.ctx.Err() != nil:
			return best, errInterrupted
		case err != nil, perr != nil:
			continue
		}
		if s := newTimeSample(at, asked, trip); best.at.IsZero() || s.trip < best.trip {
			best = s
		}
	}
	if best.at.IsZero() {
		return best, noDatagram(b)
	}
	return best, nil
}

// dialDatagram is a socket that takes answers from the box alone.
func dialDatagram(b *box) (net.Conn, error) {
	if b.spec.network == "unix" {
		return nil, usageErr("--udp needs a host, and %s is a socket on this machine; leave --udp out", b.spec.name)
	}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(b.ctx, "udp", b.spec.address)
	if err != nil {
		return nil, dialError(b.ctx, b.spec, err)
	}
	return conn, nil
}

//go:noinline
func noDatagram(b *box) error {
	return &connError{text: fmt.Sprintf("no answer from %s by datagram; is listen.datagram on there, and the UDP port the one of %s?", b.spec.name, b.spec.address)}
}

func (inv *invocation) showTime(name string, s timeSample) {
	ahead, doubt := s.ahead.Seconds(), (s.trip / 2).Seconds()
	switch {
	case inv.on("json"):
		inv.stdout.Write(netJSON(struct {
			Host  string  `json:"host"`
			Time  string  `json:"time"`
			Ahead float64 `json:"ahead"`
			Doubt float64 `json:"give_or_take"`
		}{name, s.at.UTC().Format(time.RFC3339Nano), ahead, doubt}))
	case inv.on("quiet"):
		fmt.Fprintln(inv.stdout, s.at.UTC().Format(time.RFC3339Nano))
	default:
		how := "ahead of"
		if ahead < 0 {
			how, ahead = "behind", -ahead
		}
		fmt.Fprintf(inv.stdout, "%s: %s, %.6f s %s the clock here, give or take %.6f s\n", name, s.at.UTC().Format("2006-01-02 15:04:05.000000 UTC"), ahead, how, doubt)
	}
}

// --- ping ---

// A pinging counts what was sent and what came back.
type pinging struct {
	inv  *invocation
	name string
	send func(payload string) error

	mu   mutex // guards what follows
	out  map[string]pingSent
	got  []time.Duration
	news chan struct{} // something came
}

type pingSent struct {
	seq int
	at  time.Time
}

func runPing(inv *invocation) error {
	p, err := inv.hostPlace(inv.firstArg())
	if err != nil {
		return err
	}
	g := &pinging{inv: inv, name: p.box.spec.name, out: map[string]pingSent{}, news: make(chan struct{}, 1)}
	if inv.on("udp") {
		conn, err := dialDatagram(p.box)
		if err != nil {
			return err
		}
		g.send = func(payload string) error {
			_, err := io.WriteString(conn, "echo "+payload)
			if errors.Is(err, syscall.ECONNREFUSED) { // of the one before
				err = nil
			}
			return err
		}
		var reading sync.WaitGroup
		reading.Go(func() {
			for buf := make([]byte, helloSize); ; {
				n, err := conn.Read(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				g.take(buf[:n])
			}
		})
		defer reading.Wait()
		defer conn.Close()
		return g.run(nil, func() error { return noDatagram(p.box) })
	}
	c, err := p.box.main()
	if err != nil {
		return err
	}
	g.send = func(payload string) error {
		if err := c.send(framePing, []byte(payload)); err != nil {
			return err
		}
		return c.flush()
	}
	var message func([]byte)
	if inv.within != nil {
		message = inv.within.message
	}
	c.hear(message, g.take, true)
	defer c.hear(message, nil, false)
	return g.run(c.ended, c.broken)
}

// run sends as often as was asked for and waits for what comes back: over a connection
// for all of it, or its end; by datagram no longer than pingLinger.
func (g *pinging) run(ended <-chan struct{}, why func() error) error {
	count, every := g.inv.number("count"), max(g.inv.period("interval"), pingFastest)
	mark := strconv.FormatInt(time.Now().UnixNano(), 36) + " "
	next := time.NewTimer(0)
	defer next.Stop()
	var linger <-chan time.Time
	sent := 0
	for {
		select {
		case <-next.C:
			sent++
			payload := "ping " + mark + itoa(sent)
			g.mu.Lock()
			g.out[payload] = pingSent{sent, time.Now()}
			g.mu.Unlock()
			if err := g.send(payload); err != nil {
				g.summary(sent)
				return err
			}
			if count == 0 || sent < count {
				next.Reset(every)
			} else if ended == nil {
				linger = time.After(pingLinger)
			}
		case <-g.news:
			if count > 0 && sent == count && g.waiting() == 0 {
				g.summary(sent)
				return nil
			}
		case <-linger:
			if g.summary(sent) == 0 {
				return why()
			}
			return nil
		case <-ended:
			g.summary(sent)
			return why()
		case <-g.inv.ctx.Done():
			g.summary(sent)
			return errInterrupted
		}
	}
}

func (g *pinging) waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.out)
}

// take is what has come back.
func (g *pinging) take(payload []byte) {
	now := time.Now()
	g.mu.Lock()
	s, ok := g.out[string(payload)]
	if ok {
		delete(g.out, string(payload))
		g.got = append(g.got, now.Sub(s.at))
	}
	g.mu.Unlock()
	if !ok {
		return
	}
	trip := now.Sub(s.at)
	switch {
	case g.inv.on("json"):
		g.inv.stdout.Write(netJSON(struct {
			Host string  `json:"host"`
			Seq  int     `json:"seq"`
			MS   float64 `json:"ms"`
		}{g.name, s.seq, inMilliseconds(trip)}))
	case !g.inv.on("quiet"):
		fmt.Fprintf(g.inv.stdout, "answer %d from %s: %.3f ms\n", s.seq, g.name, inMilliseconds(trip))
	}
	wake(g.news)
}

//go:noinline
func inMilliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// summary tells how it went, and how many came back.
func (g *pinging) summary(sent int) (came int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	came = len(g.got)
	var low, mean, high time.Duration
	if came > 0 {
		low, high = slices.Min(g.got), slices.Max(g.got)
		for _, d := range g.got {
			mean += d
		}
		mean /= time.Duration(came)
	}
	if g.inv.on("json") {
		g.inv.stdout.Write(netJSON(struct {
			Host     string  `json:"host"`
			Sent     int     `json:"sent"`
			Received int     `json:"received"`
			Min      float64 `json:"min_ms"`
			Mean     float64 `json:"mean_ms"`
			Max      float64 `json:"max_ms"`
		}{g.name, sent, came, inMilliseconds(low), inMilliseconds(mean), inMilliseconds(high)}))
		return came
	}
	fmt.Fprintf(g.inv.stdout, "%d sent, %d came back, %d%% lost", sent, came, (sent-came)*100/max(sent, 1))
	if came > 0 {
		fmt.Fprintf(g.inv.stdout, "; shortest %.3f ms, mean %.3f ms, longest %.3f ms", inMilliseconds(low), inMilliseconds(mean), inMilliseconds(high))
	}
	fmt.Fprintln(g.inv.stdout)
	return came
}

// --- discover ---

// A foundBox is what somebody who answers says of himself.
type foundBox struct {
	Name        string `json:"name"`
	Address     string `json:"address"` // of the control connection, if it has a port
	Version     string `json:"version"`
	Fingerprint string `json:"fingerprint,omitempty"`
}

func runDiscover(inv *invocation) error {
	port := uint16(inv.number("port"))
	asked, err := discoverTargets(inv, port)
	if err != nil {
		return err
	}
	conn, err := net.ListenUDP("udp", nil) // Go allows broadcasts on every UDP socket
	if err != nil {
		return &connError{"open a UDP socket: " + err.Error(), err}
	}
	defer conn.Close()
	hello := []byte("hello " + strings.Repeat(" ", helloSize-len("hello ")))
	var sendErr error
	reached := 0
	for _, to := range asked {
		if _, err := conn.WriteToUDPAddrPort(hello, to); err != nil {
			sendErr = err
			continue
		}
		reached++
	}
	if reached == 0 {
		return &connError{fmt.Sprintf("ask on the networks here: %v", cmp.Or(sendErr, newError("there is none"))), sendErr}
	}
	wait := inv.period("wait")
	conn.SetReadDeadline(time.Now().Add(wait))
	defer context.AfterFunc(inv.ctx, func() { conn.Close() })()
	most := maxBoxes
	if len(inv.args) > 0 {
		most = len(asked) // each has one answer
	}
	found := collectHellos(conn, port, most, plausibleSources(inv, asked))
	switch {
	case inv.ctx.Err() != nil:
		return errInterrupted
	case len(found) == 0:
		return &connError{text: fmt.Sprintf("nobody answers within %v; name an address to ask beyond the local networks, as berth discover 192.168.1.20", wait)}
	}
	showFound(inv, found)
	return nil
}

// discoverTargets are the addresses to ask: those of the arguments, or all that the
// networks here have for everybody.
func discoverTargets(inv *invocation, port uint16) ([]netip.AddrPort, error) {
	var asked []netip.AddrPort
	for _, word := range inv.args {
		to, err := net.ResolveUDPAddr("udp", joinHostPort(strings.Trim(word, "[]"), itoa(int(port))))
		if err != nil || to.IP == nil {
			return nil, usageErr("%s is neither an address nor a known name; write one as 192.168.1.20", shownText(word))
		}
		asked = append(asked, to.AddrPort())
	}
	if len(asked) > 0 {
		return asked, nil
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, errorf("look at the networks here: %w", err)
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, _ := i.Addrs()
		six := false
		for _, a := range addrs {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			four := n.IP.To4()
			switch {
			case n.IP.IsLoopback():
				addr, _ := netip.AddrFromSlice(n.IP)
				asked = append(asked, netip.AddrPortFrom(addr.Unmap(), port))
			case four != nil && i.Flags&net.FlagBroadcast != 0:
				asked = append(asked, netip.AddrPortFrom(broadcastOf(four, n.Mask), port))
			case four == nil:
				six = true
			}
		}
		if six && i.Flags&net.FlagMulticast != 0 {
			// ff02::1 is everybody on the link, RFC 4291 section 2.7.1.
			asked = append(asked, netip.AddrPortFrom(netip.MustParseAddr("ff02::1").WithZone(i.Name), port))
		}
	}
	sort.Slice(asked, func(i, j int) bool { return asked[i].Compare(asked[j]) < 0 }) // as below: 13 KB less code
	return slices.Compact(asked), nil
}

// broadcastOf is the address of everybody in the network of four.
func broadcastOf(four net.IP, mask net.IPMask) netip.Addr {
	var all [4]byte
	mask = mask[len(mask)-4:]
	for k := range all {
		all[k] = four[k] | ^mask[k]
	}
	return netip.AddrFrom4(all)
}

// plausibleSources tells whether an answer may come from there: who was asked by
// address answers from it, and who was asked with everybody is on a network of ours.
func plausibleSources(inv *invocation, asked []netip.AddrPort) func(netip.Addr) bool {
	if len(inv.args) > 0 {
		return func(from netip.Addr) bool {
			return slices.ContainsFunc(asked, func(a netip.AddrPort) bool { return a.Addr().Unmap() == from })
		}
	}
	var ours []netip.Prefix
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			ours = append(ours, p)
		}
	}
	return func(from netip.Addr) bool {
		return from.IsLinkLocalUnicast() || slices.ContainsFunc(ours, func(p netip.Prefix) bool { return p.Contains(from.WithZone("")) })
	}
}

// collectHellos reads answers until the socket's deadline, or until there are most. One box answers by each of
// its addresses, and each of those is shown once.
func collectHellos(conn *net.UDPConn, port uint16, most int, plausible func(netip.Addr) bool) []foundBox {
	var found []foundBox
	for buf := make([]byte, datagramGainFactor*helloSize+datagramGainHeader); len(found) < most; {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, net.ErrClosed) {
				break
			}
			continue
		}
		addr := from.Addr().Unmap()
		var h helloInfo
		if from.Port() != port || !plausible(addr) || json.Unmarshal(buf[:n], &h) != nil || h.Name == "" {
			continue
		}
		b := foundBox{shortShown(h.Name, maxShownName), addr.String(), shortShown(h.Version, maxShownName), shortShown(h.Fingerprint, maxShownFingerprint)}
		if p := cmp.Or(h.Ports.Control, h.Ports.TLS); p > 0 && p < 1<<16 {
			b.Address = netip.AddrPortFrom(addr, uint16(p)).String()
		}
		if !slices.Contains(found, b) {
			found = append(found, b)
		}
	}
	sort.Slice(found, func(i, j int) bool { // slices.SortFunc of a struct costs 20 KB of code
		a, b := &found[i], &found[j]
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Fingerprint, b.Fingerprint), cmp.Compare(a.Address, b.Address)) < 0
	})
	return found
}

// shortShown is a stranger's text, of at most n bytes.
func shortShown(s string, n int) string {
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "…"
	}
	return shownText(s)
}

func showFound(inv *invocation, found []foundBox) {
	if inv.on("json") {
		for _, b := range found {
			inv.stdout.Write(netJSON(b))
		}
		return
	}
	name, address, version := len("NAME"), len("ADDRESS"), len("VERSION")
	for _, b := range found {
		name = max(name, utf8.RuneCountInString(b.Name))
		address, version = max(address, len(b.Address)), max(version, utf8.RuneCountInString(b.Version))
	}
	if !inv.on("quiet") {
		fmt.Fprintf(inv.stdout, "%-*s  %-*s  %-*s  %s\n", name, "NAME", address, "ADDRESS", version, "VERSION", "FINGERPRINT")
	}
	for _, b := range found {
		fmt.Fprintf(inv.stdout, "%-*s  %-*s  %-*s  %s\n", name, b.Name, address, b.Address, version, b.Version, b.Fingerprint)
	}
}
