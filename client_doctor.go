// client_doctor.go is berth doctor HOST: a box as it looks from here, by any protocol that
// somebody who has trouble with it uses. It speaks lines of FTP itself, and so is apart
// from client_dial.go, which knows none and is for berth alone: most of this works with
// any FTP server. What it is told by a stranger it shows with care, and believes only
// as far as to connect to it.

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// farTime bounds everything but --all-ports; a person waits for it.
	farTime    = 90 * time.Second
	farAllTime = 10 * time.Minute
	// farPorts is how many passive ports are tried without --all-ports, farOpened how
	// many of them the box is asked to open, and farParallel how many at once.
	farPorts    = 1024
	farOpened   = 64
	farParallel = 128
	// farRanges is how many ranges of ports are shown.
	farRanges = 12
	// farSilent is after how many ports in a row that let nothing through no more are
	// asked for: each takes farDial.
	farSilent = 3
	// farLines bounds a reply; a long greeting or FEAT has fifty.
	farLines = 500
	// farFile is what --write sends: more than any network's largest packet.
	farFile = 64 << 10
	// farAddresses is how many addresses of a name are tried, and farAgain how often in a
	// row the box may open ports that it has opened before.
	farAddresses = 16
	farAgain     = 256
	// clockFar is a difference that people notice.
	clockFar = 5 * time.Second
)

// farDial is how long a connection may take: two lost packets, RFC 6298. Tests, whose
// networks lose nothing, have less time.
var farDial = 4 * time.Second

// A farBox is a box as it is looked at from here.
type farBox struct {
	*doctor
	box     *box
	spec    *hostSpec
	name    string // for doctor's own command line, with the user if he was named
	host    string
	port    string
	address netip.Addr // the first that answers
	ftp     *farFTP
	isBerth bool
	other   bool // it is another FTP server
	secured bool
	trusted bool // its certificate is; or there is none, on this machine
	inside  bool // logged in
	dataTLS *tls.Config
	ports   portRange // passive ones, as far as known
	told    bool      // by the box itself, or by --ports
}

func runDoctorFar(inv *invocation) error {
	if inv.on("config") || inv.on("deep") {
		return usageErr("--config and --deep are for the box itself: berth doctor without HOST")
	}
	p, err := inv.hostPlace(inv.firstArg())
	if err != nil {
		return err
	}
	if p.box.spec.network == "unix" {
		return usageErr("%s is a socket on this machine; berth doctor without HOST looks at it", p.box.spec.name)
	}
	limit := farTime
	if inv.on("all-ports") {
		limit = farAllTime
	}
	ctx, cancel := context.WithTimeout(inv.ctx, limit)
	defer cancel()
	f := &farBox{doctor: &doctor{inv: inv, ctx: ctx, place: defaultConfigPath + " on the box"}, box: p.box, spec: p.box.spec}
	f.host, f.port, _ = net.SplitHostPort(f.spec.address)
	if f.name = f.spec.name; f.spec.userSaid {
		f.name = f.spec.user + "@" + f.name
	}
	if !isText(f.port, defaultPort) {
		f.word = " -p " + f.port
	}
	if inv.on("ports") {
		f.ports.UnmarshalText([]byte(inv.str("ports")))
		f.told = true
	}
	reached := f.run()
	late := ctx.Err() != nil
	f.ctx = inv.ctx
	if late {
		f.say(levelWarn, "time|it took more than $1; the rest was not looked at|berth doctor$p --ports LOW-HIGH $2   with fewer ports", limit.String(), f.name)
	}
	if err = f.end(); !reached && inv.ctx.Err() == nil {
		return exitWith(exitNoConn)
	}
	return err
}

// run goes on for as long as there is something to ask.
func (f *farBox) run() (reached bool) {
	f.group = "network"
	if !f.reach() {
		return false
	}
	f.group = "control connection"
	if f.greet() {
		f.group = "login"
		f.login()
	}
	if f.ftp != nil {
		defer f.ftp.conn.Close()
	}
	if f.inside {
		if f.isBerth {
			f.framed()
		}
		f.group = "data connections"
		f.data()
	}
	f.group = "passive ports"
	f.passive()
	f.group = "datagrams and pages"
	if !f.other {
		f.datagrams()
		f.pages()
	}
	return true
}

// openLines is what lets ports through, by what most boxes have: $1 is the protocol, $2
// the ports, $3 the same for ufw.
const openLines = "|ufw allow $3/$1   on the box, or|nft add rule inet filter input $1 dport $2 accept   on the box|forward $1 $2 to the box   in the router in front of it, if there is one"

// blocked is a finding about ports that are not let through; more goes in as $4 and up.
func (f *farBox) blocked(l level, proto, ports, what string, more ...string) {
	f.say(l, what+openLines, append([]string{proto, ports, strings.ReplaceAll(ports, "-", ":")}, more...)...)
}

// --- network ---

// reach looks the name up and tries each address.
func (f *farBox) reach() bool {
	ctx, cancel := context.WithTimeout(f.ctx, 2*doctorWait)
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", f.host) // of an address, itself
	cancel()
	if err != nil || len(addrs) == 0 {
		f.say(levelFail, "name|$1|write an address for $2   in the name server, in /etc/hosts here, or as host = \"192.0.2.1\" in "+configFileHint, dialError(f.ctx, f.spec, err).Error(), f.host)
		return false
	}
	addrs = addrs[:min(len(addrs), farAddresses)]
	took, errs := make([]time.Duration, len(addrs)), make([]error, len(addrs))
	var dials sync.WaitGroup
	names := ""
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
		names += ", " + addrs[i].String()
		dials.Go(func() {
			began := time.Now()
			errs[i] = f.knock(addrs[i], f.port)
			took[i] = time.Since(began)
		})
	}
	dials.Wait()
	if names = names[2:]; names != f.host {
		f.say(levelOK, "name|$1 is $2", f.host, names)
	}
	for i := range addrs {
		if errs[i] == nil && !f.address.IsValid() {
			f.address = addrs[i]
		}
	}
	for i, a := range addrs {
		at, err, l := joinHostPort(a.String(), f.port), errs[i], levelFail
		if f.address.IsValid() {
			l = levelWarn // there is another way
		}
		switch {
		case err == nil:
			f.say(levelOK, "reach|$1 answers in $2", at, took[i].Round(time.Millisecond/10).String())
		case errors.Is(err, syscall.ECONNREFUSED):
			f.say(l, "reach|$1 refuses: nothing listens there, or a firewall says so|systemctl enable --now berth   on the box|@listen.control = [\"[::]:$2\"]", at, f.port)
		case filtered(err):
			f.blocked(l, "tcp", f.port, "reach|$4: no answer: the machine is off, or a firewall drops it", at)
		default:
			if l == levelWarn && a.Is6() {
				l = levelNote // no IPv6 here
			}
			f.say(l, "reach|$1: $2|ip route get $3", at, errno(err), a.String())
		}
	}
	return f.address.IsValid()
}

// errno is what the kernel says, without the addresses around it.
func errno(err error) string {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e.Error()
	}
	return err.Error()
}

// filtered is a connection that nobody answered.
func filtered(err error) bool {
	var late net.Error
	return errors.As(err, &late) && late.Timeout() || errors.Is(err, syscall.ETIMEDOUT)
}

func (f *farBox) connect(a netip.Addr, port string) (net.Conn, error) {
	return (&net.Dialer{Timeout: farDial}).DialContext(f.ctx, "tcp", joinHostPort(a.String(), port))
}

// knock connects and hangs up.
func (f *farBox) knock(a netip.Addr, port string) error {
	c, err := f.connect(a, port)
	if err == nil {
		c.Close()
	}
	return err
}

// --- lines of FTP ---

// A farFTP is a control connection.
type farFTP struct {
	conn net.Conn
	in   *bufio.Reader
}

// ask sends a line, if there is one, and reads the reply: its code, its lines, and what
// people are told of it. The code is 0 where there is no connection any more, or no FTP.
func (c *farFTP) ask(line string) (code int, text, said string) {
	c.conn.SetDeadline(time.Now().Add(dialTimeout))
	if line != "" {
		io.WriteString(c.conn, line+"\r\n")
	}
	for n := 0; n < farLines; n++ {
		l, err := c.in.ReadSlice('\n')
		if err != nil {
			return 0, text, errno(err)
		}
		s := strings.TrimRight(string(l), "\r\n")
		text += s + "\n"
		if !isReply(text) {
			break
		}
		if len(s) == 3 || beginsWith(s, text[:3]+" ") {
			return atoi(text[:3]), text, configQuote(shortShown(strings.TrimSpace(text), maxShownName*2))
		}
	}
	return 0, text, "no reply of FTP: " + configQuote(shortShown(text, maxShownName))
}

// greet connects, and finds out what is there and how well it is secured.
func (f *farBox) greet() bool {
	conn, err := f.connect(f.address, f.port)
	if err != nil {
		f.say(levelFail, "greeting|$1|berth doctor$p $2   again", errno(err), f.name)
		return false
	}
	context.AfterFunc(f.ctx, func() { conn.Close() })
	f.ftp = &farFTP{conn, newReader(conn, maxGreeting)}
	code, text, said := f.ftp.ask("")
	switch {
	case code == 0 && text == "":
		f.say(levelFail, "greeting|it takes the connection and does not greet: $1|systemctl status berth   on the box|or another port: berth doctor -p 2121 $2", said, f.name)
		return false
	case code != 220:
		f.say(levelFail, "greeting|it takes no connection: $1|journalctl -u berth -e   on the box|or another port: berth doctor -p 2121 $2", said, f.name)
		return false
	}
	f.say(levelOK, "greeting|$1", said)
	_, text, _ = f.ftp.ask("FEAT")
	if f.isBerth = hasText(text, "\n FRAM 1\n"); f.isBerth {
		f.say(levelOK, "berth|it is a berth: FEAT has FRAM 1")
	} else {
		f.other = true
		f.say(levelNote, "berth|it is no berth: FEAT has no FRAM 1. What only a berth has is left out")
	}
	if f.inv.on("plain") {
		f.trusted = true
		f.say(levelWarn, "tls|no TLS, as --plain says: everything goes in clear text|berth doctor$p $1   without --plain", f.name)
		return true
	}
	return f.secure()
}

// A ticketBox keeps the one ticket that data connections may have to show.
type ticketBox struct{ s *tls.ClientSessionState }

func (b *ticketBox) Get(string) (*tls.ClientSessionState, bool) { return b.s, b.s != nil }

func (b *ticketBox) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		b.s = s
	}
}

// secure starts TLS and judges the certificate. Nothing secret is sent where that is not
// the one that is meant: the rules are those of all verbs.
func (f *farBox) secure() bool {
	f.group = "tls"
	code, _, said := f.ftp.ask("AUTH TLS")
	if code != 234 {
		l := levelFail
		if f.address.IsLoopback() {
			l, f.trusted = levelNote, true
		}
		f.say(l, "tls|no TLS: AUTH TLS is answered with $1|@tls.certificate = \"\"|ssl_enable=YES   in the configuration, where it is a vsftpd|berth doctor$p --plain $2   for a look without", said, f.name)
		return code != 0
	}
	cfg, err := f.spec.tlsConfig()
	var conn *tls.Conn
	if err == nil {
		cfg.ClientSessionCache = &ticketBox{}
		cfg.NextProtos = []string{tlsProtoFTP}
		conn = tls.Client(f.ftp.conn, cfg)
		f.ftp.conn.SetDeadline(time.Now().Add(dialTimeout))
		err = conn.Handshake()
	}
	if err != nil {
		f.say(levelFail, "tls|the TLS handshake fails: $1|openssl s_client -starttls ftp -connect $2   tells more", errno(err), f.spec.address)
		return false
	}
	f.ftp.conn.SetDeadline(time.Time{}) // a person may be asked
	cs := conn.ConnectionState()
	f.say(levelOK, "tls|$1, $2", tls.VersionName(cs.Version), cipherName(cs.CipherSuite))
	f.ftp = &farFTP{conn, newReader(conn, maxGreeting)}
	f.secured = true
	f.certificate(cs)
	f.dataTLS = cfg
	cfg.NextProtos = nil
	cfg.VerifyConnection = func(d tls.ConnectionState) error {
		if !d.PeerCertificates[0].Equal(cs.PeerCertificates[0]) {
			return newError("the data connection has another certificate than the control connection")
		}
		return nil
	}
	return true
}

// cipherName is that of a suite that this program may agree on. crypto/tls has a table of
// all that there are, of 6 KB.
func cipherName(id uint16) string {
	switch id {
	case tls.TLS_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256:
		return "AES-128-GCM"
	case tls.TLS_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:
		return "AES-256-GCM"
	case tls.TLS_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256:
		return "ChaCha20-Poly1305"
	}
	return "cipher suite " + itoa(int(id)) + " of IANA's list"
}

func (f *farBox) certificate(cs tls.ConnectionState) {
	leaf := cs.PeerCertificates[0]
	print := fingerprintOf(leaf.Raw)
	args := []string{f.spec.serverName, shortShown(namesOf(leaf), maxShownText), print, "", "", shellWord(pinWord(f.spec.pin)), f.name}
	self := bytes.Equal(leaf.RawIssuer, leaf.RawSubject)
	again := "certbot renew   on the box"
	if self {
		again = "rm /var/lib/berth/tls/*.pem && systemctl restart berth   on the box; its fingerprint is another one then"
	}
	f.certified(cs.PeerCertificates, again)
	_, err := verifyChain(cs, f.spec.serverName, nil)
	switch {
	case err == nil:
		f.say(levelOK, "certificate.system|the system's authorities vouch for it, for $1", args...)
	case !self && errors.As(err, new(x509.HostnameError)):
		f.say(levelWarn, "certificate.system|it is not for $1: clients that verify names refuse it|certbot certonly -d %1   on the box|or connect by $2", args...)
	default:
		args[3] = err.Error()
		f.say(levelNote, "certificate.system|the system's authorities do not vouch for it ($4): clients have to know it|--fingerprint $3   for berth's client|@tls.certificate = \"/etc/berth/cert.pem\"", args...)
	}
	pins, err := readPins(f.spec.pin)
	known := slices.ContainsFunc(pins, func(p knownPin) bool { return p.fingerprint == print })
	if err == nil {
		err = f.spec.checkCertificate(cs) // at a terminal it asks
	}
	f.trusted = err == nil
	switch {
	case known && f.trusted:
		f.say(levelOK, "certificate.known|its fingerprint is the one that is remembered here")
	case len(pins) > 0 && !known:
		args[3], args[4] = pins[0].fingerprint, pins[0].file
		f.say(levelFail, "certificate.known|its fingerprint is not the one that is remembered in $5: $4|berth keygen -R $6   if whoever looks after the box says that it is the right one", args...)
	case err != nil:
		args[3], _, _ = cutText(err.Error(), "\n")
		l := levelWarn
		if f.inv.on("fingerprint") || f.inv.on("ca") { // it was said which one it has to be
			l = levelFail
		}
		f.say(l, "certificate.known|$4|berth doctor$p --fingerprint $3 $7   if it is the one in the box's log", args...)
	}
}

// --- login ---

// login goes in if there is a way, and without it goes on as far as it can.
func (f *farBox) login() {
	args := []string{f.spec.user, f.spec.name, "there is no password", ""}
	code, said := 0, ""
	if !f.trusted {
		args[2] = "the box is not trusted"
	} else if code, _, said = f.ftp.ask("USER " + f.spec.user); code == 331 {
		password, err := f.spec.givenPassword()
		f.spec.given = true
		if err == nil && password == "" && f.spec.userSaid {
			if password, err = f.spec.ask(shownText(f.spec.user)+"@"+f.spec.name+"'s password (empty: go on without): ", false); errors.Is(err, errNoTerminal) {
				err = nil
			}
		}
		if err != nil {
			args[2] = err.Error()
		}
		code = 0
		if err == nil && password != "" {
			if code, _, said = f.ftp.ask("PASS " + password); code == 230 {
				f.box.password = &password
			}
		}
	}
	args[3] = said
	switch {
	case code == 230 || code == 232:
		f.inside = true
		f.say(levelOK, "login|logged in as $1", args...)
	case code == 0:
		f.say(levelNote, "login|not logged in: $3. What needs a login is not looked at|BERTH_PASSWORD=... berth doctor$p $1@$2   or with ~/.netrc, --password-file FILE, --key FILE", args...)
	case hasText(said, "clear text"):
		f.say(levelFail, "login|$1 is not let in: $4|berth doctor$p $1@$2   without --plain|or: berth user set $1 --tls optional   on the box", args...)
	default:
		f.say(levelFail, "login|$1 is not let in: $4|journalctl -u berth -g 'login failed'   on the box has the reason|berth user passwd $1   there sets another password", args...)
	}
}

// framed asks what only frames tell: the clock and the passive ports.
func (f *farBox) framed() {
	f.spec.tls = f.secured
	c, err := f.box.main()
	var s timeSample
	if err == nil {
		s, err = frameTime(f.box)
	}
	if err != nil {
		f.say(levelFail, "frames|FTP works, and frames do not: $1|journalctl -u berth -e   on the box", err.Error())
		return
	}
	f.say(levelOK, "frames|berth $1 answers in frames", shortShown(c.welcome.Version, maxShownName))
	if c.welcome.Passive != "" && !f.told {
		f.told = f.ports.UnmarshalText([]byte(c.welcome.Passive)) == nil
	}
	f.clock(s)
}

func (f *farBox) clock(s timeSample) {
	l, what := levelOK, "clock|the box's clock is $1 from this one"
	if s.ahead.Abs() > clockFar {
		l, what = levelWarn, "clock|the box's clock is $1 from this one: it says $2|timedatectl set-ntp true   on the machine that is wrong"
	}
	f.say(l, what, s.ahead.Round(time.Millisecond).String(), s.at.UTC().Format(time.DateTime+" UTC"))
}

// --- data connections ---

// pasv asks for a passive port and says where it is.
func (f *farBox) pasv() (netip.AddrPort, error) {
	code, text, said := f.ftp.ask("PASV")
	n := strings.FieldsFunc(text[min(3, len(text)):], func(r rune) bool { return r < '0' || r > '9' })
	if code != 227 || len(n) < 6 {
		return netip.AddrPort{}, newError(said)
	}
	n = n[len(n)-6:]
	a, err := netip.ParseAddr(strings.Join(n[:4], "."))
	return netip.AddrPortFrom(a, uint16(atoi(n[4])<<8|atoi(n[5]))), err
}

// epsv is the same, where the address is the box's own.
func (f *farBox) epsv() (netip.AddrPort, error) {
	code, text, said := f.ftp.ask("EPSV")
	_, rest, _ := cutText(text, "|||")
	port, _, _ := cutText(rest, "|")
	if n := atoi(port); code == 229 && n > 0 && n < 1<<16 {
		return netip.AddrPortFrom(f.address, uint16(n)), nil
	}
	return netip.AddrPort{}, newError(said)
}

// data tries a listing over PASV and over EPSV, and an upload if that is wanted.
func (f *farBox) data() {
	if f.secured {
		f.ftp.ask("PBSZ 0")
		if code, _, said := f.ftp.ask("PROT P"); code != 200 {
			f.dataTLS = nil
			f.say(levelFail, "data.tls|PROT P is refused, so that data goes in clear text: $1|@tls.require = \"remote\"", said)
		}
	}
	if f.address.Is4() {
		f.judgePASV()
	}
	if at, err := f.epsv(); err != nil {
		f.say(levelFail, "epsv|EPSV gives no port: $1|@passive.ports = \"50000-50999\"", err.Error())
	} else if text, err := f.list(at); err != nil {
		f.blocked(levelFail, "tcp", f.known(at.Port()), "epsv|EPSV tells port $4, and no listing comes: $5", itoa(int(at.Port())), err.Error())
	} else {
		f.say(levelOK, "epsv|EPSV tells port $1, and $2", itoa(int(at.Port())), text)
	}
	f.activeMode()
	if f.inv.on("write") {
		f.write()
	}
}

// known is the passive ports as far as they are known, or the one that was seen.
func (f *farBox) known(port uint16) string {
	if f.ports.count() > 0 {
		return f.ports.String()
	}
	return itoa(int(port))
}

// insideOnly is an address that no other network leads to: RFC 1918, 6598 and the like.
func insideOnly(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10).Contains(a)
}

// judgePASV compares the address that PASV tells with the one that works.
func (f *farBox) judgePASV() {
	at, err := f.pasv()
	if err != nil {
		f.say(levelFail, "pasv|PASV gives no port: $1|@passive.ports = \"50000-50999\"", err.Error())
		return
	}
	text, err := f.list(at)
	args := []string{at.String(), at.Addr().String(), f.address.String(), "", text}
	if insideOnly(at.Addr()) && !insideOnly(f.address) {
		args[3] = "; the box seems to be behind NAT"
	}
	why := ""
	if err != nil {
		why = err.Error()
	}
	args = append(args, why)
	line := "|@passive.address = \"$3\""
	if f.other {
		line = "|pasv_address=$3   in the configuration, where it is a vsftpd; other servers have another name for it"
	}
	switch {
	case at.Addr() == f.address && err == nil:
		f.say(levelOK, "pasv|PASV tells $1, and $5", args...)
		return
	case at.Addr() == f.address:
		f.blocked(levelFail, "tcp", f.known(at.Port()), "pasv|PASV tells $4, and no listing comes: $5", at.String(), why)
		return
	case err == nil:
		f.say(levelWarn, "pasv|PASV tells $2, and the control connection goes to $3$4. A listing comes from there, but clients that check the address refuse it"+line, args...)
		return
	}
	// Many clients take the address of the control connection then. Is that the way?
	if at, err = f.pasv(); err == nil {
		_, err = f.list(netip.AddrPortFrom(f.address, at.Port()))
	}
	if err == nil {
		f.say(levelFail, "pasv|PASV tells $2, where no listing comes from ($6); at $3, where the control connection goes, one does$4"+line, args...)
	} else {
		f.say(levelFail, "pasv|PASV tells $2, and the control connection goes to $3$4; no listing comes from either: $6"+line+"|forward tcp $7 to the box   in the router in front of it", append(args, f.known(at.Port()))...)
	}
}

// begin asks for something over a data connection there, and secures that as it has to be.
func (f *farBox) begin(at netip.AddrPort, command string) (net.Conn, error) {
	conn, err := f.connect(at.Addr(), itoa(int(at.Port())))
	if err != nil {
		what := errno(err)
		if filtered(err) {
			what = "no answer"
		}
		return nil, newError(what + " from " + at.String())
	}
	if code, _, said := f.ftp.ask(command); code/100 != 1 {
		conn.Close()
		return nil, newError(said)
	}
	return f.protect(conn)
}

func (f *farBox) protect(conn net.Conn) (net.Conn, error) {
	conn.SetDeadline(time.Now().Add(dialTimeout))
	if f.dataTLS == nil {
		return conn, nil
	}
	tc := tls.Client(conn, f.dataTLS)
	if err := tc.Handshake(); err != nil {
		conn.Close()
		f.ftp.ask("") // the listing's end
		return nil, newError("TLS on the data connection: " + errno(err))
	}
	return tc, nil
}

// done ends a data connection and waits for the reply that all went well.
func (f *farBox) done(conn net.Conn, err error) error {
	if cerr := conn.Close(); err == nil {
		err = cerr
	}
	code, _, said := f.ftp.ask("")
	if err == nil && code/100 != 2 {
		err = newError(said)
	}
	return err
}

// list fetches a listing from there, and tells how it went.
func (f *farBox) list(at netip.AddrPort) (string, error) {
	conn, err := f.begin(at, "LIST")
	if err != nil {
		return "", err
	}
	return f.fetch(conn)
}

func (f *farBox) fetch(conn net.Conn) (string, error) {
	n, err := io.Copy(io.Discard, conn)
	text := "a listing of " + humanBytes(n) + " comes in clear text"
	if tc, ok := conn.(*tls.Conn); ok {
		text = "a listing of " + humanBytes(n) + " comes protected"
		if tc.ConnectionState().DidResume {
			text += ", by a resumed session"
		}
	}
	return text, f.done(conn, err)
}

// activeMode has the box connect to here, which works only without NAT and firewall on
// this side; few clients need it.
func (f *farBox) activeMode() {
	local, _ := netip.ParseAddrPort(f.ftp.conn.LocalAddr().String())
	a := local.Addr().Unmap()
	ln, err := net.Listen("tcp", joinHostPort(a.String(), "0"))
	if err != nil {
		return
	}
	defer ln.Close()
	ln.(*net.TCPListener).SetDeadline(time.Now().Add(2 * farDial))
	family, port := "1", itoa(ln.Addr().(*net.TCPAddr).Port)
	if a.Is6() {
		family = "2"
	}
	code, _, said := f.ftp.ask("EPRT |" + family + "|" + a.WithZone("").String() + "|" + port + "|")
	if code == 200 {
		code, _, said = f.ftp.ask("LIST")
	}
	var conn net.Conn
	if code/100 != 1 {
		err = newError(said)
	} else if conn, err = ln.Accept(); err != nil {
		f.ftp.ask("")
	} else if conn, err = f.protect(conn); err == nil {
		_, err = f.fetch(conn)
	}
	if err != nil {
		f.say(levelNote, "active|active mode does not work from here: $1|passive mode   in the clients here: behind NAT active mode cannot work", err.Error())
		return
	}
	f.say(levelOK, "active|active mode works from here too")
}

// write sends a file, fetches it, and deletes it: what is larger than one packet finds
// networks that lose large ones.
func (f *farBox) write() {
	content := make([]byte, farFile)
	rand.Read(content)
	name := "doctor-" + hexText(content[:8]) + ".tmp"
	f.ftp.ask("TYPE I")
	move := func(command string) (net.Conn, error) {
		at, err := f.epsv()
		if err != nil {
			at, err = f.pasv()
		}
		if err != nil {
			return nil, err
		}
		return f.begin(at, command+" "+name)
	}
	began := time.Now()
	conn, err := move("STOR")
	if err == nil {
		_, err = conn.Write(content)
		err = f.done(conn, err)
	}
	if err == nil {
		if conn, err = move("RETR"); err == nil {
			var got []byte
			if got, err = io.ReadAll(io.LimitReader(conn, farFile+1)); err == nil && !bytes.Equal(got, content) {
				err = newError("what comes back is not what was sent")
			}
			err = f.done(conn, err)
		}
	}
	took := time.Since(began).Round(time.Millisecond / 10).String()
	if code, _, _ := f.ftp.ask("DELE " + name); code != 250 && err == nil {
		f.say(levelNote, "write.left|the file $1 cannot be deleted again|berth rm$p $2:$1", name, f.spec.name)
	}
	switch {
	case err == nil:
		f.say(levelOK, "write|64 KiB went there and back in $1", took)
	case filtered(err):
		f.say(levelFail, "write|small packets get through and large ones do not: something on the way has a smaller MTU, and the word of it is lost|nft add rule inet filter forward tcp flags syn tcp option maxseg size set rt mtu   in the router, or|ip link set dev eth0 mtu 1400   on the box")
	default:
		f.say(levelFail, "write|a file of 64 KiB cannot be sent and fetched: $1|berth user show $2   on the box tells permissions and quota", err.Error(), f.spec.user)
	}
}
