-- KEYS[1] is the stream of the replies. ARGV: time, how long a stream that has an end stays after its last reply at
-- least, in milliseconds, or empty where none is given one, then names and values of the fields.
local stream, ttl = KEYS[1], ARGV[2]
local is_new = redis.call('EXISTS', stream) == 0
-- The first change needs no room: a server whose memory is full shall not keep answered jobs from their end.
redis.call('XDEL', stream, '0-1')
local entry = redis.call('XADD', stream, '*', unpack(ARGV, 3))
if ttl ~= '' then
  -- One that somebody else made has no end unless that was given to it. Whether an end is theirs or was given here
  -- cannot be told, so any sooner one is put off: a reply that has just come is not to go with those before it.
  if is_new then redis.call('PEXPIRE', stream, ttl) else redis.call('PEXPIRE', stream, ttl, 'GT') end
end
return entry
