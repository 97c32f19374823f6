-- ARGV: time, names and values of the fields. The stream of the replies stands where others have the inbox.
-- The first change needs no room: a server whose memory is full shall not keep answered jobs from their end.
redis.call('XDEL', inbox, '0-1')
return redis.call('XADD', inbox, '*', unpack(ARGV, 2))
